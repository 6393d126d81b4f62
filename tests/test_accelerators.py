"""Programs for a GPU and a TPU, lowered without one: training and decoding, and the types of bfloat16."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.accelerators import HOPPER, lowered, pretend

from train.config import OptimizerConfig
from train.losses import causal_lm, seq2seq
from train.optimizer import make_optimizer
from train.parallel import make_parallel
from train.state import create_state
from train.step import eval_step, train_step
from transformer_jax import sampling
from transformer_jax.config import TransformerConfig
from transformer_jax.models import GPT, Seq2Seq, Seq2SeqConfig, init_params
from transformer_jax.nn.kv_cache_kinds import make_cache

ROOT = Path(__file__).parents[1]
B, T, V, MAX_NEW = 4, 14, 23, 5
SIZES = dict(vocab_size=V, max_len=22, num_layers=2, d_model=24, num_heads=3, head_dim=8, d_ff=29, dtype="bfloat16")
CONFIG = TransformerConfig(**SIZES)
MODEL = GPT(CONFIG)
PAIRS = Seq2Seq(Seq2SeqConfig(CONFIG, CONFIG))
BATCH = {"tokens": np.zeros((B, T + 1), np.int32), "is_token": np.ones((B, T + 1), bool)}
PAIR_BATCH = {
    "source": BATCH["tokens"],
    "source_is_token": BATCH["is_token"],
    "target": BATCH["tokens"],
    "target_is_token": BATCH["is_token"],
}
platforms = pytest.mark.parametrize("platform", ["gpu", "tpu"])


@pytest.fixture(autouse=True)
def no_trace_is_shared():
    """JAX keeps traces by function and shapes; those that were made for another platform choose as there."""
    jax.clear_caches()
    yield
    jax.clear_caches()


def make_step(model, loss_fn):
    """A training step as the loop compiles it, and the shapes of its state, with a moving average."""
    optimizer = make_optimizer(OptimizerConfig(), 100)
    options = dict(seed=0, accumulation=2, max_consecutive_skips=3, log_every=10, ema_decay=0.9)
    step = functools.partial(train_step, model=model, loss_fn=loss_fn, optimizer=optimizer, **options)
    create = lambda key: create_state(init_params(model, key), optimizer, has_ema=True)  # noqa: E731
    return step, jax.eval_shape(create, jax.random.key(0))


STEPS = {"gpt": (MODEL, causal_lm, BATCH), "seq2seq": (PAIRS, seq2seq, PAIR_BATCH)}


@platforms
@pytest.mark.parametrize("name", STEPS)
def test_a_training_step_lowers_and_gives_its_whole_state_away(monkeypatch, platform, name):
    pretend(monkeypatch, platform, HOPPER if platform == "gpu" else None)
    model, loss_fn, batch = STEPS[name]
    step, state = make_step(model, loss_fn)
    parallel = make_parallel("jit", step, functools.partial(eval_step, model=model, loss_fn=loss_fn), B)
    batches = jax.tree.map(lambda x: np.stack([x, x]), batch)
    text = lowered(parallel._train, state, batches, np.int32(2), platform=platform)
    donated = re.findall("tf.aliasing_output|jax.buffer_donor", text)
    assert len(donated) == len(jax.tree.leaves(state)) > 50
    assert "f64" not in text and "callback" not in text
    assert ("__cudnn$fmhaSoftmaxBackward" in text) == (platform == "gpu" and name == "gpt")


def shapes_of(tree):
    return jax.eval_shape(lambda: tree)


def decoding(model, params, batch_size=B):
    """Step, cache and prompts of a decoder, or of a decoder with a source, as shapes."""
    extend = functools.partial(model.apply, last_only=True, method="extend")
    step = jax.tree_util.Partial(extend, {"params": params})
    if model is MODEL:
        cache = shapes_of(make_cache(CONFIG, batch_size, T + MAX_NEW))
        return step, cache, sampling.Prompts(BATCH["tokens"][:, :T], BATCH["is_token"][:, :T])
    encode = functools.partial(model.apply, capacity=1 + MAX_NEW, method="encode_source")
    cache = jax.eval_shape(encode, {"params": params}, BATCH["tokens"], BATCH["is_token"])
    return step, cache, sampling.Prompts(BATCH["tokens"][:, :1], BATCH["is_token"][:, :1])


PROCESSORS = (sampling.Temperature(0.7), sampling.TopK(3), sampling.TopP(0.9))
METHODS = {"greedy": (), "sample": PROCESSORS, "beams": ()}


@platforms
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", [MODEL, PAIRS], ids=["gpt", "seq2seq"])
def test_prefill_and_the_decode_loop_lower_in_one_program(monkeypatch, platform, model, method):
    pretend(monkeypatch, platform, HOPPER if platform == "gpu" else None)
    params = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
    inputs = decoding(model, params)
    if method == "beams":
        spec = sampling.DecodeSpec(MAX_NEW, (0,), beams=sampling.BeamSpec(3))
        text = lowered(sampling.beam_search, *inputs, sampling.BeamParams.of(MAX_NEW), spec, platform=platform)
    else:
        keys = jax.random.split(jax.random.key(1), B)
        spec = sampling.DecodeSpec(MAX_NEW, (0,), method=method)
        numbers = sampling.SamplingParams(keys, METHODS[method])
        text = lowered(sampling.generate, *inputs, numbers, spec, platform=platform)
    assert "stablehlo.while" in text and "f64" not in text and "callback" not in text
    assert "fmha" not in text  # a cache has no flags


def test_xla_knows_the_flags_of_the_page_and_stops_on_others():
    named = re.findall(r"XLA_FLAGS=(--\S*?)`", (ROOT / "docs" / "accelerators.md").read_text())
    assert len(set(named)) >= 6
    codes = []
    for flags in (" ".join(named), "--xla_gpu_no_such_flag=true"):
        words = [sys.executable, "-c", "import jax; jax.numpy.ones(2)"]
        codes.append(subprocess.run(words, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True).returncode)
    assert codes[0] == 0 != codes[1]


# bfloat16


def equations(jaxpr):
    """All equations of a jaxpr, also those of the functions in it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def types_of(program, *args):
    """Types of the operands and the results of each kind of operation: {name: {(operand, ..., result), ...}}."""
    found = {}
    for equation in equations(jax.make_jaxpr(program)(*args).jaxpr):
        variables = [x.aval for x in (*equation.invars, *equation.outvars) if hasattr(x.aval, "dtype")]
        floats = tuple(str(x.dtype) for x in variables if jnp.issubdtype(x.dtype, jnp.floating))
        found.setdefault(equation.primitive.name, set()).add(floats)
    return found


BF16 = "bfloat16"
SUMS = ("reduce_sum", "reduce_max", "exp", "log", "rsqrt", "div", "scatter-add")


@pytest.mark.parametrize("backend", ["reference", "xla", "blockwise"])
@pytest.mark.parametrize("tie_embeddings", [True, False], ids=["tied", "untied"])
def test_products_are_of_bfloat16_and_sums_exponentials_and_roots_of_float32(backend, tie_embeddings):
    changes = dict(tie_embeddings=tie_embeddings, positions="rotary", qk_norm="head", feed_forward="relu")
    model = GPT(TransformerConfig(**SIZES | changes | {"backend": backend}))
    step, state = make_step(model, causal_lm)
    types = types_of(step, state, BATCH)
    assert {found[:2] for found in types["dot_general"]} == {(BF16, BF16)}
    # Scores, logits and their gradients are not rounded; all other products are.
    assert {found[2] for found in types["dot_general"]} == {BF16, "float32"}
    for name in SUMS:
        of_bfloat16 = [found for found in types.get(name, ()) if BF16 in found]
        assert not of_bfloat16, (name, of_bfloat16)


def test_parameters_gradients_optimizer_and_average_are_float32():
    step, state = make_step(MODEL, causal_lm)
    after = jax.eval_shape(step, state, BATCH)
    for tree in (state, after):
        floats = [x.dtype for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
        assert len(floats) > 50 and set(floats) == {jnp.dtype("float32")}

    def loss(params):
        return causal_lm(functools.partial(MODEL.apply, {"params": params}), BATCH)[0]

    value, gradients = jax.eval_shape(jax.value_and_grad(loss), state.params)
    assert {x.dtype for x in jax.tree.leaves((value, gradients))} == {jnp.dtype("float32")}


@pytest.mark.parametrize("tie_embeddings", [True, False], ids=["tied", "untied"])
def test_logits_of_bfloat16_are_not_rounded_and_their_gradient_is_close(tie_embeddings):
    rng = np.random.default_rng(0)
    x = jnp.array(rng.normal(size=(B, T, 24)), BF16)
    model = GPT(TransformerConfig(**SIZES | {"tie_embeddings": tie_embeddings, "init_std": 1.0}))
    exact = GPT(TransformerConfig(**SIZES | {"tie_embeddings": tie_embeddings, "dtype": "float32"}))
    # Numbers that bfloat16 has, so that only the result could be rounded.
    params = jax.tree.map(lambda p: p.astype(BF16).astype(jnp.float32), init_params(model, jax.random.key(0)))

    def outputs(model, x):
        loss = lambda params: jnp.sum(jnp.sin(model.apply({"params": params}, x, method="logits")))  # noqa: E731
        return model.apply({"params": params}, x, method="logits"), jax.grad(loss)(params)

    logits, gradients = outputs(model, x)
    expected, expected_gradients = outputs(exact, x.astype(jnp.float32))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert np.abs(logits - logits.astype(BF16)).max() > 1e-2
    for a, e in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
        np.testing.assert_allclose(a, e, atol=0.02 * max(1.0, np.abs(e).max()))
