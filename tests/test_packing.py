"""Packed rows (segments): every text is computed as if it were alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import close, random_like

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.models import GPT, Encoder
from transformer_jax.nn.positions import POSITIONS

B, T, V = 3, 11, 37
SIZES = dict(
    vocab_size=V, max_len=13, d_model=7, num_heads=6, num_kv_heads=2, head_dim=4, d_ff=17, tie_embeddings=False
)
LENGTHS = [[2, 5, 3, 1], [7, 4], [11]]  # of the texts of each row
SEGMENTS = np.array([np.repeat([4, 2, 9, 0][: len(row)], row) for row in LENGTHS])  # any numbers, in any order
IS_TOKEN = np.ones((B, T), bool)
IS_TOKEN[0, 10] = IS_TOKEN[2, 8:] = False  # padding as a text of its own, and at the end of one
TOKENS = np.random.default_rng(0).permutation(np.arange(B * T) + 2).reshape(B, T)  # each token occurs once
TEXTS = [
    (row, *span)
    for row, lengths in enumerate(LENGTHS)
    for span in zip(np.cumsum([0, *lengths[:-1]]), np.cumsum(lengths), strict=True)
]
VARIANTS = {name: {"positions": name} for name in POSITIONS} | {
    "blockwise": {"positions": "t5", "backend": "blockwise"},
    "window": {"positions": "rotary", "window": 3},
}
MODELS = {"gpt": GPT, "encoder": Encoder}
variants = pytest.mark.parametrize("variant", VARIANTS)
models = pytest.mark.parametrize("kind", MODELS)


def make(kind, **kwargs):
    num_layers = {"gpt": 2, "encoder": 1}[kind]
    model = MODELS[kind](TransformerConfig(**SIZES | {"num_layers": num_layers} | kwargs))
    return model, random_like(jax.eval_shape(model.init, jax.random.key(0), TOKENS))


@functools.cache
def read(kind, variant):
    """(tokens, is_token, segments) -> logits, or an encoder's vectors, as a numpy array."""
    model, params = make(kind, **VARIANTS[variant])
    apply = jax.jit(functools.partial(model.apply, params))
    return lambda tokens, is_token, segments: np.asarray(apply(tokens, is_token=is_token, segments=segments))


@functools.cache
def packed(kind, variant):
    return read(kind, variant)(TOKENS, IS_TOKEN, SEGMENTS)


def each_text_in_a_row_of_its_own():
    """The slow twin's tokens and is_token, [texts, T]; rows are filled with tokens of the other texts."""
    tokens = np.array([np.roll(TOKENS[row], -first) for row, first, _ in TEXTS])
    is_token = np.zeros(tokens.shape, bool)
    for i, (row, first, end) in enumerate(TEXTS):
        is_token[i, : end - first] = IS_TOKEN[row, first:end]
    return tokens, is_token


@models
@variants
def test_packed_texts_are_computed_as_if_each_were_alone(kind, variant):
    alone = read(kind, variant)(*each_text_in_a_row_of_its_own(), None)
    assert np.all(np.isfinite(packed(kind, variant)))
    for (row, first, end), expected in zip(TEXTS, alone, strict=True):
        is_token = IS_TOKEN[row, first:end]
        close(packed(kind, variant)[row, first:end][is_token], expected[: end - first][is_token])


@models
@variants
def test_a_packed_text_ignores_other_texts_and_padding_bit_for_bit(kind, variant):
    for row, first, end in TEXTS[:4]:
        is_own = np.zeros((B, T), bool)
        is_own[row, first:end] = IS_TOKEN[row, first:end]
        changed = np.where(is_own, TOKENS, TOKENS[::-1, ::-1])
        after = read(kind, variant)(changed, IS_TOKEN, SEGMENTS)
        np.testing.assert_array_equal(after[is_own], packed(kind, variant)[is_own])


@models
@variants
def test_segment_numbers_do_not_matter_as_long_as_they_differ(kind, variant):
    np.testing.assert_array_equal(read(kind, variant)(TOKENS, IS_TOKEN, 3 - 5 * SEGMENTS), packed(kind, variant))


@models
@pytest.mark.parametrize("variant", ["none", "rotary", "t5"])
def test_without_segments_packed_texts_attend_to_each_other(kind, variant):
    difference = np.abs(read(kind, variant)(TOKENS, IS_TOKEN, None) - packed(kind, variant)).max(-1)
    assert np.all(difference[0, 2:10] > 1e-4)


GRADIENTS = [("gpt", name) for name in VARIANTS] + [
    ("encoder", name) for name in ("none", "shaw", "blockwise", "window")
]


@pytest.mark.parametrize("kind, variant", GRADIENTS)
def test_gradients_do_not_cross_texts(kind, variant):
    """Every token occurs once, so a row of the embedding table has the gradient of its position."""
    model, params = make(kind, **VARIANTS[variant], num_layers=1)

    def loss(params, is_own):
        x = model.apply(params, TOKENS, is_token=IS_TOKEN, segments=SEGMENTS)
        return jnp.sum(jnp.where(is_own[:, :, None], jnp.sin(x), 0.0))

    grad = jax.jit(jax.grad(loss))
    for row, first, end in TEXTS[:4]:
        is_own = np.zeros((B, T), bool)
        is_own[row, first:end] = IS_TOKEN[row, first:end]
        of_tokens = np.asarray(grad(params, is_own)["params"]["embed"]["tokens"]["embedding"])[TOKENS]
        np.testing.assert_array_equal(np.any(of_tokens != 0, axis=-1), is_own)
        assert np.all(np.isfinite(of_tokens))


@models
def test_linear_attention_refuses_segments_because_its_state_spans_the_row(kind):
    model, params = make(kind, attention="linear", positions="sinusoidal")
    with pytest.raises(UserError, match="attention='linear'.*no segments"):
        jax.eval_shape(functools.partial(model.apply, segments=SEGMENTS), params, TOKENS)
