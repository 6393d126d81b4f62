"""Training of adapters (LoRA, DoRA, IA3): only they and a new head are trained, and a run directory has them apart."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.adapter_training import assert_equal, config_of, pretrained
from helpers.arrays import by_name
from helpers.checkpoints import rewrite_meta

import transformer_jax as tj
from configs import finetune_bert
from train.adapters import adapter_spec, first_adapter, split_trained
from train.config import AdapterConfig, Config, OptimizerConfig
from train.loop import run as train
from train.optimizer import is_decayed, make_optimizer, muon_dimensions
from train.state import create_state
from transformer_jax.checkpoints.store import Checkpoints
from transformer_jax.config import TransformerConfig
from transformer_jax.models import GPT
from transformer_jax.models.adapters import adapter_shapes, all_shapes, variables_of
from transformer_jax.nn.layers import Dense

pytestmark = pytest.mark.usefixtures("compilation_cache")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    return train(config_of(folder, **LORA), folder / "run")


LORA = {"adapter.rank": 3, "adapter.dropout": 0.25, "train.ema_decay": 0.5}


def test_training_changes_the_adapter_alone_and_the_run_has_it_beside_the_parameters(run_dir):
    run = tj.load(run_dir)
    assert_equal(run.params, pretrained("gpt2").params)
    layers = by_name(run.adapter)
    assert {name.split("/")[2] for name in layers} == {"attention"} and len(layers) == 3 * 4 * run.config.num_layers
    for name, leaf in layers.items():
        if name.endswith("/scale"):
            assert leaf == np.float32(16 / 3)
        else:
            assert np.abs(leaf).max() > 0 and 3 in leaf.shape


def test_a_run_directory_has_the_model_once_and_a_checkpoint_the_adapter(run_dir):
    checkpoints = run_dir / "checkpoints"
    stored = (checkpoints / "4" / "params" / "_METADATA").read_text()
    assert "lora_in" in stored and "kernel" not in stored and "scale" not in stored
    assert "kernel" in (checkpoints / "frozen" / "params" / "_METADATA").read_text()
    losses = [tj.load(run_dir, step).adapter for step in (2, 4)]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *losses)
    assert_equal(tj.load(run_dir, average=2).adapter, mean)


def test_a_run_with_an_adapter_writes_texts_and_is_merged_when_saved(run_dir, tmp_path):
    run, base = tj.load(run_dir), pretrained("gpt2")
    texts = [tj.generate(r, "The cat", max_new_tokens=7, method="greedy") for r in (run, tj.merge_adapter(run), base)]
    assert texts[0] == texts[1] != texts[2]
    tj.save_pretrained(run, tmp_path / "folder")
    tokens = np.arange(14).reshape(2, 7) + 9
    expected = np.asarray(tj.logits(run, tokens))
    for saved in (tj.from_pretrained(tmp_path / "folder"), tj.merge_adapter(run)):
        np.testing.assert_allclose(tj.logits(saved, tokens), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_run_with_an_adapter_resumes_as_if_it_had_never_stopped(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "run")
    more = config_of(tmp_path, **LORA, **{"train.num_steps": 6, "data.path": str(run_dir.parent / "my.txt")})
    resumed = train(more, tmp_path / "run")
    uninterrupted = train(more, tmp_path / "uninterrupted")
    assert_equal(tj.load(resumed).variables, tj.load(uninterrupted).variables)
    with pytest.raises(tj.UserError, match=r"adapter.rank=5: the checkpoint .* was trained with 3"):
        train(config_of(tmp_path, **LORA | {"adapter.rank": 5}), tmp_path / "run")


def test_metadata_of_another_adapter_than_the_arrays_are_refused(run_dir, tmp_path):
    for change, message in [
        ({"rank": 5}, "has shape"),
        ({"rank": 99}, "adapter.rank=99: must be at least 1, and at most 20"),
        ({"kind": "dora"}, "magnitude is missing"),
        ({"layers": ["stack/block_0/nowhere"]}, "no linear layer 'stack/block_0/nowhere'"),
    ]:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(run_dir, tmp_path / "run")
        rewrite_meta(tmp_path / "run", lambda meta, c=change: meta | {"adapter": meta["adapter"] | c})
        with pytest.raises(tj.UserError, match=message) as error:
            tj.load(tmp_path / "run", 4)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("base", ["gpt2", "llama", "bert", "t5"])
def test_an_adapter_before_its_first_step_changes_no_bit_and_has_its_declared_shapes(kind, base):
    run = pretrained(base)
    config = AdapterConfig(kind, rank=3, where="" if kind == "ia3" else "all-linear")
    spec = adapter_spec(run.model, config)
    layers = first_adapter(run.model, spec, config, jax.random.key(0), run.params)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a.shape == b.shape, layers, adapter_shapes(run.model, spec))))
    tokens = np.arange(14).reshape(2, 7) + 9
    inputs = (tokens, np.ones_like(tokens, bool), tokens) if base == "t5" else (tokens,)
    adapted = run.__class__(**{**vars(run), "adapter": layers})
    np.testing.assert_array_equal(tj.logits(adapted, *inputs), tj.logits(run, *inputs))


def test_the_presets_take_the_linear_layers_of_the_blocks():
    model = pretrained("t5").model

    def chosen(kind, where=""):
        return {"/".join(n.split("/")[-2:]) for n in adapter_spec(model, AdapterConfig(kind, 2, where=where)).layers}

    attention = {f"{side}/{name}" for side in ("attention", "cross") for name in ("query", "key", "value", "out")}
    assert chosen("lora") == chosen("dora", "attention") == attention
    assert chosen("lora", "all-linear") == attention | {"feed_forward/up", "feed_forward/down"}
    assert chosen("lora", "block_1/.*query$,cross/out") == {"attention/query", "cross/query", "cross/out"}
    assert {name.split("/")[1] for name in chosen("ia3")} == {"key", "value", "down"}


def test_a_new_head_is_trained_in_full_beside_the_adapter(tmp_path):
    rows = [f"the {word} cat\t{label}\n" for label, word in (("good", "garden"), ("bad", "mat")) for _ in range(20)]
    (tmp_path / "train.tsv").write_text("".join(rows))
    changes = {"data.path": str(tmp_path / "train.tsv"), "adapter.kind": "dora", "adapter.rank": 2}
    changes |= {"optimizer.peak_lr": 0.01, "train.num_steps": 30, "train.eval_every": 30}
    config = config_of(tmp_path, finetune_bert, "bert", **changes, **{"adapter.where": "all-linear"})
    run = tj.load(train(config, tmp_path / "run"))
    assert_equal(run.params["encoder"], pretrained("bert").params["encoder"])
    assert run.params["out"]["kernel"].shape == (run.config.d_model, 2)
    assert run.adapter_params == ("dense/bias", "dense/kernel", "out/bias", "out/kernel")  # for save_adapter
    assert any(np.any(leaf != 1) for name, leaf in by_name(run.adapter).items() if name.endswith("magnitude"))
    labels = [prediction.label for prediction in tj.classify(run, ["the garden cat", "the mat cat"])]
    assert labels == ["good", "bad"]


def test_the_optimizer_decays_loras_matrices_and_muon_leaves_adapters_to_adamw():
    model = GPT(TransformerConfig(vocab_size=11, max_len=7, num_layers=2, d_model=6, num_heads=2))
    config = Config.from_dict({"adapter": {"kind": "dora", "rank": 2}, "train": {"init_from": "x"}})
    spec = adapter_spec(model, config.adapter)
    trained, frozen = split_trained(all_shapes(model, spec), config, model)
    names = by_name(trained)
    assert all(name.startswith("adapters/") for name in names) and {n for n in by_name(frozen) if "adapters" in n}
    for name, is_one in by_name(is_decayed(trained)).items():
        assert is_one == name.endswith(("lora_in", "lora_out")), name
    assert not jax.tree.leaves(muon_dimensions(trained))
    create = functools.partial(create_state, optimizer=make_optimizer(OptimizerConfig(name="muon"), 10))
    jax.eval_shape(create, trained)


def test_lora_trains_at_most_three_percent_of_the_gradients_and_optimizer_state_of_gpt2():
    model = GPT(TransformerConfig(vocab_size=50257, max_len=1024, num_layers=12, d_model=768, num_heads=12))

    def num_bytes(**adapter):
        config = Config.from_dict({"adapter": adapter, "train": {"init_from": "x"}})
        shapes = all_shapes(model, adapter_spec(model, config.adapter))
        trained, _ = split_trained(shapes, config, model)
        state = jax.eval_shape(make_optimizer(config.optimizer, 10).init, trained)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((trained, state)))

    full = num_bytes()
    assert full > 12 * 124e6
    assert num_bytes(kind="lora", rank=8, where="all-linear") < 0.03 * full


def test_dropout_is_of_the_inputs_of_lora_in_alone_and_in_training_alone():
    layer = Dense((64,), use_bias=False)
    adapter = {"lora_in": jnp.eye(64), "lora_out": jnp.eye(64), "scale": jnp.ones(1)}
    x = jax.random.normal(jax.random.key(0), (3, 17, 64)) + 5.0
    params = {"kernel": jnp.eye(64), "adapters": adapter}
    kept = layer.apply(variables_of(params), x)
    np.testing.assert_allclose(kept, 2 * x, rtol=1e-5)
    variables = variables_of(params, 0.25)
    dropped = (layer.apply(variables, x, rngs={"dropout": jax.random.key(1)}) - x) / x
    values = np.unique(np.round(dropped, 3))
    np.testing.assert_allclose(values, [0.0, 4 / 3], atol=1e-3)
    assert np.mean(dropped < 0.5) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"adapter.kind": "loha"}, "adapter.kind='loha': unknown. Choose one of: lora, dora, ia3, prefix, prompt"),
        ({"adapter.rank": 21}, "adapter.rank=21: must be at least 1, and at most 20, .*attention/key"),
        ({"adapter.rank": 0}, "adapter.rank=0"),
        ({"adapter.alpha": 0.0}, "adapter.alpha=0.0"),
        ({"adapter.dropout": 1.0}, "adapter.dropout=1.0"),
        ({"adapter.where": "c_attn"}, "'c_attn'.*There are: .*block_0/attention/query.*attention or all-linear"),
        ({"adapter.where": "embed"}, "no linear layer has 'embed'"),
        ({"adapter.where": "("}, r"adapter.where: '\(' is not a regular expression"),
        ({"adapter.where": "attention,"}, "adapter.where='attention,': has an empty pattern"),
        ({"adapter.full": "nowhere"}, "adapter.full: no parameter has 'nowhere'"),
        ({"optimizer.freeze": "embed"}, "optimizer.freeze='embed': is read only with adapter.kind=''"),
        ({"adapter.kind": "ia3", "adapter.rank": 4}, "adapter.rank=4: is read only with adapter.kind=lora | dora"),
        ({"adapter.kind": "", "adapter.where": "attention"}, "adapter.where='attention': is read only with"),
        (
            {"train.resize_vocab": True, "model.vocab_size": 113},
            "embed/tokens/embedding would keep random values.*adapter.full",
        ),
    ],
)
def test_an_adapter_that_cannot_be_trained_is_refused_in_one_line(tmp_path, changes, message):
    with pytest.raises(tj.UserError, match=message) as error:
        train(config_of(tmp_path, **changes), tmp_path / "run")
    assert len(str(error.value).splitlines()) == 1 and not Checkpoints(tmp_path / "run").steps()


def test_an_adapter_without_a_pretrained_model_is_refused():
    with pytest.raises(tj.UserError, match="adapter.kind='lora': is read only with train.init_from set"):
        Config.from_dict({"adapter": {"kind": "lora"}})


def test_a_run_with_an_adapter_starts_another_run_merged(run_dir, tmp_path):
    config = config_of(tmp_path, **{"adapter.kind": "ia3", "train.num_steps": 2})
    config.train.init_from = str(run_dir)
    run = tj.load(train(config, tmp_path / "run"))
    assert_equal(run.params, tj.merge_adapter(tj.load(run_dir)).params)
    assert {name.split("/")[-1] for name in by_name(run.adapter)} == {"ia3_in", "ia3_out"}
