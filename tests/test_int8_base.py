"""Adapters on an int8 base (QLoRA): the base is that of tj.quantize, in training, in its run directory and after it."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import adapter_training
from helpers.adapter_cases import FIXTURES
from helpers.adapter_training import assert_equal
from helpers.arrays import by_name, close, random_like
from helpers.checkpoints import rewrite_meta

import transformer_jax as tj
from train import flops
from train.adapter_config import AdapterConfig
from train.adapters import adapter_spec, first_adapter
from train.config import Config
from train.initialization import InitFrom
from train.loop import init_state
from train.loop import run as train
from train.optimizer import make_optimizer
from transformer_jax.models.adapters import with_adapter
from transformer_jax.models.prefix import all_variables
from transformer_jax.models.quantization import int8_paths
from transformer_jax.nn.quantization import LARGE_BLOCK, MANY_ROWS, Int8, dequantize, matmul, to_int8

pytestmark = pytest.mark.usefixtures("compilation_cache")


def config_of(folder, **changes):
    return adapter_training.config_of(folder, **{"adapter.rank": 3, "adapter.int8": True} | changes)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    return train(config_of(folder), folder / "run")


@functools.cache
def quantized():
    return tj.quantize(tj.from_pretrained(FIXTURES / "gpt2"))


TOKENS = np.arange(14).reshape(2, 7) + 9


@pytest.mark.parametrize("columns", [67, 2 * LARGE_BLOCK + 67])
@pytest.mark.parametrize("rows", [3, MANY_ROWS + 3])
def test_the_gradient_of_a_product_is_that_with_the_floats_of_its_kernel(rows, columns):
    random = np.random.default_rng(rows)
    x, kernel = jnp.asarray(random.normal(size=(rows, 11)), jnp.float32), to_int8(random.normal(size=(columns, 11)))
    floats = dequantize(kernel, jnp.float32).T
    close(jax.jit(matmul)(x, kernel), x @ floats)
    loss = lambda x, product: jnp.sum(jnp.sin(product(x)))  # noqa: E731
    gradient = jax.jit(jax.grad(lambda x: loss(x, lambda x: matmul(x, kernel))))(x)
    close(gradient, jax.grad(lambda x: loss(x, lambda x: x @ floats))(x))


def test_the_base_is_that_of_quantize_and_the_run_directory_has_it_once(run_dir):
    run = tj.load(run_dir)
    assert jax.tree.structure(run.params) == jax.tree.structure(quantized().params)
    assert_equal(run.params, quantized().params)
    assert any(np.any(leaf != 0) for name, leaf in by_name(run.adapter).items() if name.endswith("lora_out"))
    stored = (run_dir / "checkpoints" / "frozen" / "params" / "_METADATA").read_text()
    assert "numbers" in stored and "numbers" not in (run_dir / "checkpoints" / "4" / "params" / "_METADATA").read_text()
    assert_equal(tj.load(run_dir, average=2).params, quantized().params)
    text = tj.generate(run, "The cat", max_new_tokens=7, method="greedy")
    assert text != tj.generate(quantized(), "The cat", max_new_tokens=7, method="greedy")


def test_the_loss_before_the_first_step_is_that_of_the_quantized_model(tmp_path):
    run = tj.load(train(config_of(tmp_path, **{"optimizer.peak_lr": 1e-30, "train.num_steps": 1}), tmp_path / "run"))
    np.testing.assert_array_equal(tj.logits(run, TOKENS), tj.logits(quantized(), TOKENS))


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "prefix"])
def test_gradients_of_an_adapter_are_those_on_the_floats_of_the_base(kind):
    model, small = quantized().model, quantized().params
    config = AdapterConfig(kind, num_tokens=3)
    layers = first_adapter(model, adapter_spec(model, config), config, jax.random.key(0), small)
    layers = jax.tree.map(lambda leaf, change: leaf + change, layers, random_like(layers, scale=0.1))
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (5, MANY_ROWS // 5 + 1))

    @jax.jit
    def gradient(layers, params):
        loss = lambda layers: jnp.sum(jnp.sin(model.apply(all_variables(model, with_adapter(params, layers)), tokens)))  # noqa: E731
        return jax.grad(loss)(layers)

    pairs = zip(
        jax.tree.leaves(gradient(layers, small)), jax.tree.leaves(gradient(layers, floats_of(small))), strict=True
    )
    for actual, expected in pairs:
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def floats_of(small):
    """Int8 parameters as floats, in the shapes of the model."""
    floats = jax.tree.map(lambda leaf: leaf, tj.from_pretrained(FIXTURES / "gpt2").params)
    for *modules, last in int8_paths(small):
        of_small, of_floats = (functools.reduce(lambda tree, name: tree[name], modules, t) for t in (small, floats))
        whole = dequantize(Int8(**of_small[last]), jnp.float32)
        of_floats[last] = (whole.T if last == "kernel" else whole).reshape(of_floats[last].shape)
    return floats


def test_an_int8_base_has_a_quarter_of_the_bytes_and_the_same_operations():
    run = tj.from_pretrained(FIXTURES / "gpt2")
    small = quantized()
    shapes = {name: leaf for name, leaf in by_name(small.params).items() if not name.endswith("scales")}
    kernels = [leaf for name, leaf in by_name(run.params).items() if name.endswith(("kernel", "embedding"))]
    assert 4 * sum(leaf.nbytes for name, leaf in shapes.items() if name.endswith("numbers")) == sum(
        leaf.nbytes for leaf in kernels
    )
    assert flops.count_params(small.params) == flops.count_params(run.params)
    assert flops.flops_per_token(small.params, run.config) == flops.flops_per_token(run.params, run.config)


def test_an_int8_base_resumes_to_the_bit_and_is_not_written_again(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "run")
    seal = tmp_path / "run" / "checkpoints" / "frozen" / "sha256.json"
    written = seal.stat().st_mtime_ns
    more = config_of(tmp_path, **{"train.num_steps": 6, "data.path": str(run_dir.parent / "my.txt")})
    resumed = train(more, tmp_path / "run")
    uninterrupted = train(more, tmp_path / "uninterrupted")
    assert_equal(tj.load(resumed).variables, tj.load(uninterrupted).variables)
    assert seal.stat().st_mtime_ns == written


def test_an_adapter_trained_on_int8_is_saved_alone_and_works_beside_its_base(run_dir, tmp_path):
    run = tj.load(run_dir)
    tj.save_adapter(run, tmp_path / "adapter")
    base = tj.load_adapter(tj.from_pretrained(FIXTURES / "gpt2"), tmp_path / "adapter")
    close(tj.logits(tj.quantize(base), TOKENS), tj.logits(run, TOKENS))
    for save in (tj.save, tj.save_pretrained, lambda run, _: tj.merge_adapter(run)):
        with pytest.raises(tj.UserError, match="cannot be merged into int8 weights.*save_adapter") as error:
            save(run, tmp_path / "new")
        assert len(str(error.value).splitlines()) == 1
    config = config_of(tmp_path, **{"train.num_steps": 1})
    config.train.init_from = str(run_dir)
    with pytest.raises(tj.UserError, match="cannot be merged into int8 weights"):
        train(config, tmp_path / "again")


def test_parameters_trained_in_full_stay_floats_beside_an_int8_base(tmp_path):
    run = tj.from_pretrained(FIXTURES / "gpt2")
    config = Config.from_dict(config_of(tmp_path, **{"adapter.full": "block_1/.*up/kernel,embed/"}))
    state, _ = init_state(config, run.model, make_optimizer(config.optimizer, 4), InitFrom(run=run))
    trained = {name: leaf for name, leaf in by_name(state.params).items() if not name.startswith("adapters/")}
    tables = ["embed/positions/embedding", "embed/tokens/embedding"]
    assert list(trained) == [*tables, "stack/block_1/feed_forward/up/kernel"]
    for name, leaf in trained.items():
        np.testing.assert_array_equal(leaf, by_name(run.params)[name])
    floats = {name.split("/")[-1] for name, leaf in by_name(state.frozen).items() if leaf.dtype != "int8"}
    assert floats == {"bias", "scale", "scales"}


def test_metadata_that_name_no_kernel_are_refused(run_dir, tmp_path):
    for key, message in [("['stack']['norm']['bias']", "is no kernel or embedding"), ("['nowhere']", "is no kernel")]:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(run_dir, tmp_path / "run")
        rewrite_meta(tmp_path / "run", lambda meta, k=key: meta | {"param_dtypes": meta["param_dtypes"] | {k: "int8"}})
        with pytest.raises(tj.UserError, match=message) as error:
            tj.load(tmp_path / "run", 4)
        assert len(str(error.value).splitlines()) == 1
    rewrite_meta(tmp_path / "run", lambda meta: meta | {"param_dtypes": {}})
    with pytest.raises(tj.UserError, match="embedding is missing"):
        tj.load(tmp_path / "run", 4)


def test_int8_without_an_adapter_is_refused():
    with pytest.raises(tj.UserError, match="adapter.int8=True: is read only with adapter.kind"):
        Config.from_dict({"adapter": {"int8": True}})
