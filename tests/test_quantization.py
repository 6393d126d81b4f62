"""Weights and KV caches of 8 and 16 bits: rounding errors, and the laws of decoding that still hold."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.arrays import by_name, close, random_like

import transformer_jax as tj
from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.models import GPT, Seq2Seq, Seq2SeqConfig, parameter_shapes
from transformer_jax.nn.kv_cache_kinds import make_cache, make_rolling_cache
from transformer_jax.nn.quantization import dequantize, matmul, to_int8
from transformer_jax.run import Run
from transformer_jax.sampling import GenerationDefaults
from transformer_jax.tokenizers import train_tokenizer

B, T, WINDOW = 5, 13, 3
TEXT = "the cat sat on the mat and the dog ran over the green hills to see the cat on the mat " * 3
RAGGED = np.ones((B, T), bool)
RAGGED[1, :5] = RAGGED[2, :12] = RAGGED[3, 4:] = RAGGED[4, 3:6] = False
TYPES = ("float32", "bfloat16", "int8")
LOOSE = 0.03  # of the largest logit


@functools.cache
def make_run(**kwargs):
    """A run with random parameters."""
    tokenizer = train_tokenizer("byte", 283, TEXT)
    sizes = dict(
        vocab_size=tokenizer.vocab_size,
        max_len=43,
        num_layers=2,
        d_model=20,
        num_heads=6,
        num_kv_heads=2,
        head_dim=4,
        d_ff=67,
    )
    config = TransformerConfig(**sizes | dict(positions="rotary") | kwargs)
    params = random_like(parameter_shapes(GPT(config)), scale=0.2)
    return Run(GPT(config), params, tokenizer, config, generation_defaults=GenerationDefaults((), 0, 1))


def tokens_of(run):
    return np.random.default_rng(0).integers(0, run.config.vocab_size, (B, T))


@functools.partial(jax.jit, static_argnums=0)
def extend(model, params, *args):
    return model.apply({"params": params}, *args, method="extend")


def in_pieces(run, cache, sizes):
    pieces, first = [], 0
    for size in sizes:
        piece = slice(first, first + size)
        logits, cache = extend(run.model, run.params, tokens_of(run)[:, piece], RAGGED[:, piece], cache)
        pieces, first = [*pieces, logits], first + size
    return np.concatenate(pieces, axis=1), cache


def nearly(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=LOOSE * np.abs(np.asarray(expected)).max())


# Numbers


def test_int8_rounds_by_at_most_half_a_step_and_keeps_zeros():
    x = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32) * np.array([1e-6, 1, 1e6])[:, None, None]
    x[1, 2] = 0
    small = to_int8(jnp.asarray(x))
    assert small.numbers.dtype == jnp.int8 and small.scales.shape == (3, 5, 1)
    assert np.all(np.abs(small.numbers).max(-1) == np.where(np.any(x, axis=-1), 127, 0))
    assert np.all(np.abs(dequantize(small, jnp.float32) - x) <= np.asarray(small.scales) * 0.501)
    assert not np.any(dequantize(small, jnp.float32)[1, 2])


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("columns", [1, 63, 64, 131])  # blocks have 64
def test_a_matrix_product_in_blocks_equals_the_product(rows, columns):
    random = np.random.default_rng(columns)
    x, kernel = jnp.asarray(random.normal(size=(rows, 11)), jnp.float32), to_int8(random.normal(size=(columns, 11)))
    close(matmul(x, kernel), x @ dequantize(kernel, jnp.float32).T)


# Weights


def test_all_kernels_and_embeddings_become_int8_and_nothing_else_does():
    run = make_run(positions="learned")
    small = tj.quantize(run)
    sizes = [sum(x.nbytes for x in jax.tree.leaves(one.params)) for one in (run, small)]
    assert sizes[1] < 0.42 * sizes[0]  # scales and norms are a large part of so narrow a model
    for name, leaf in by_name(small.params).items():
        expected = {"numbers": "int8", "scales": "float32", "bias": "float32", "scale": "float32"}
        assert leaf.dtype == expected[name.split("/")[-1]], name
    assert small.params["stack"]["block_1"]["attention"]["out"]["kernel"]["numbers"].shape == (20, 6 * 4)
    assert jax.tree.leaves(run.params)[0].dtype == jnp.float32  # the run itself is unchanged


def test_int8_changes_the_perplexity_of_a_trained_model_by_less_than_one_percent():
    run = make_run(num_layers=1)
    text = run.tokenizer.encode(TEXT)
    rows = np.stack([text[i : i + 24] for i in range(0, 200, 7)])

    @jax.jit
    def loss(params, rows):
        logits = run.model.apply({"params": params}, rows[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()

    optimizer = optax.adam(1e-2)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params, rows), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=150)[0][0]

    run = dataclasses.replace(run, params=train(jax.tree.map(lambda x: 0.3 * x, run.params)))
    whole, small = loss(run.params, rows), loss(tj.quantize(run).params, rows)
    assert whole < 1.2  # it has learned something that rounding could spoil
    assert abs(np.exp(small - whole) - 1) < 0.01


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"tie_embeddings": False, "positions": "learned", "feed_forward": "swiglu", "num_layers": 1},
        {"positions": "t5", "dtype": "bfloat16", "num_layers": 1},
    ],
    ids=str,
)
def test_an_int8_model_has_nearly_the_same_logits_and_decodes_like_a_full_pass(kwargs):
    run = make_run(**kwargs)
    small, tokens = tj.quantize(run), tokens_of(run)
    full = np.asarray(tj.logits(small, tokens, RAGGED))[RAGGED]
    expected = np.asarray(tj.logits(run, tokens, RAGGED))[RAGGED]
    nearly(full, expected)
    assert np.any(full != expected)
    for sizes in ([T], [1] * T, [4, 1, 4, 4]):
        logits = in_pieces(small, make_cache(run.config, B, 17), sizes)[0][RAGGED]
        nearly(logits, full) if run.config.dtype == "bfloat16" else close(logits, full)


def test_an_int8_seq2seq_has_nearly_the_same_logits():
    side = TransformerConfig(
        vocab_size=23, max_len=17, num_layers=1, d_model=12, num_heads=3, positions="t5", relative_buckets=4
    )
    model = Seq2Seq(Seq2SeqConfig(side, side))
    run = Run(model, random_like(parameter_shapes(model), scale=0.2), None, model.config)
    tokens = np.random.default_rng(1).integers(0, 23, (B, T))
    small = tj.quantize(run)
    nearly(tj.logits(small, tokens, RAGGED, tokens)[RAGGED], tj.logits(run, tokens, RAGGED, tokens)[RAGGED])
    assert set(small.params["shared"]["embedding"]) == {"numbers", "scales"}


def test_an_int8_run_cannot_be_saved(tmp_path):
    for save in (tj.save, tj.save_pretrained):
        with pytest.raises(UserError, match="int8 weights"):
            save(tj.quantize(make_run()), tmp_path / "new")


# Caches


@pytest.mark.parametrize("cache_type", TYPES)
@pytest.mark.parametrize("window", [0, WINDOW])
def test_a_cache_of_any_type_agrees_between_splits_and_with_the_full_pass(cache_type, window):
    run = make_run(window=window)
    full = np.asarray(tj.logits(run, tokens_of(run), RAGGED))[RAGGED]
    empty = make_rolling_cache(run.config, B, 4) if window else make_cache(run.config, B, 17)
    first = None
    for sizes in ([4, 1, 4, 4], [1] * T, [3, 1, 1, 4, 4]):
        logits, cache = in_pieces(run, empty.with_type(cache_type), sizes)
        nearly(logits[RAGGED], full)
        first = logits if first is None else first
        close(logits[RAGGED], first[RAGGED]) if cache_type == "float32" else nearly(logits[RAGGED], first[RAGGED])
    assert (cache_type == "float32") == np.allclose(logits[RAGGED], full, atol=1e-5)  # it was really rounded


def test_an_int8_cache_needs_about_a_quarter_of_the_memory():
    config = TransformerConfig(vocab_size=3, num_layers=1, d_model=128, num_heads=2)
    cache = make_cache(config, 2, 31)
    sizes = [sum(x.nbytes for x in jax.tree.leaves(cache.with_type(name).layers)) for name in TYPES]
    assert sizes[1] / sizes[0] == 0.5 and sizes[2] / sizes[0] == 0.25 + 1 / 64  # a scale for 64 numbers


@pytest.mark.parametrize(
    "settings, cache_types", [({}, TYPES), ({"method": "beam", "num_beams": 3}, ("float32", "int8"))], ids=str
)
def test_texts_are_generated_with_any_cache_type(settings, cache_types):
    run = make_run(num_layers=1)
    usual = tj.complete(run, ["the cat", "a"], tj.GenerationConfig(max_new_tokens=7, seed=1, **settings))
    for cache_type in cache_types:
        config = tj.GenerationConfig(max_new_tokens=7, seed=1, cache_type=cache_type, **settings)
        for ours, expected in zip(tj.complete(run, ["the cat", "a"], config), usual, strict=True):
            same = [a == b for a, b in zip(ours.tokens, expected.tokens, strict=True)]
            num = same.index(False) if False in same else len(same)
            nearly(ours.log_probs[:num], expected.log_probs[:num])
            assert num > 0 and (cache_type != "float32" or num == 7)


def test_unknown_and_impossible_cache_types_are_refused():
    with pytest.raises(UserError, match="cache_type='int4': unknown. Choose one of: model, float32, bfloat16, int8"):
        tj.GenerationConfig(cache_type="int4")
    run = make_run(attention="linear", positions="none")
    with pytest.raises(UserError, match="cache_type='int8': linear attention"):
        tj.generate(run, "a", max_new_tokens=3, cache_type="int8")
