"""A ring of slots for models with a window: the same as a full cache and as no cache, however long the text is."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import close, random_like
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.models import GPT
from transformer_jax.nn.kv_cache_kinds import make_cache, make_rolling_cache

B, T, V, WINDOW, MOST = 5, 31, 23, 5, 3  # a ring of 7 slots, which 31 tokens go round four times
SIZES = dict(vocab_size=V, num_layers=2, d_model=11, num_heads=6, head_dim=4, d_ff=19, window=WINDOW)
VARIANTS = {
    "rotary": dict(num_kv_heads=2),
    "alibi": dict(num_kv_heads=1, num_layers=1),
    "t5": dict(relative_buckets=5, relative_max_distance=11),
    "shaw": dict(relative_max_distance=3, num_layers=1),
    "none": dict(num_kv_heads=3, qk_norm="head", num_layers=1),
}
variants = pytest.mark.parametrize("variant", VARIANTS)
TOKENS = np.random.default_rng(0).integers(0, V, (B, T))
RAGGED = np.ones((B, T), bool)  # a full row, two padded on the left, one within and one on the right
RAGGED[1, :13] = RAGGED[2, :30] = RAGGED[3, 7:19] = RAGGED[4, 11:] = False
CONTEXT = 17  # what the ring's model was made for, and what it goes beyond
BY_THREES, BY_ONES = [3] * 10 + [1], [1] * T


class Decoder:
    """A model made for a short context, its parameters, and the same model with room for all: `full`."""

    def __init__(self, **kwargs):
        self.config = TransformerConfig(**SIZES | dict(max_len=CONTEXT) | kwargs)
        self.long = dataclasses.replace(self.config, max_len=T)
        self.params = random_like(jax.eval_shape(GPT(self.config).init, jax.random.key(0), TOKENS[:, :2]))
        self.extend = jax.jit(functools.partial(GPT(self.config).apply, self.params, method="extend"))
        self.full = jax.jit(functools.partial(GPT(self.long).apply, self.params))

    def ring(self, max_new=MOST):
        return make_rolling_cache(self.config, B, max_new)

    def in_pieces(self, cache, is_token, sizes, disturb=lambda cache: cache):
        """Logits [B, T, V] of TOKENS, read with a cache in pieces of these sizes."""
        pieces, first = [], 0
        for size in sizes:
            piece = slice(first, first + size)
            logits, cache = self.extend(TOKENS[:, piece], is_token[:, piece], disturb(cache))
            pieces, first = [*pieces, logits], first + size
        return np.concatenate(pieces, axis=1), cache


@functools.cache
def decoder(variant):
    return Decoder(positions=variant, **VARIANTS[variant])


# The law


@variants
@pytest.mark.parametrize("sizes", [BY_THREES, BY_ONES, [1, 3, 1] * 6 + [1]], ids=["threes", "ones", "mixed"])
def test_a_ring_is_a_full_cache_is_no_cache_long_past_the_context(variant, sizes):
    model = decoder(variant)
    ring, cache = model.in_pieces(model.ring(), RAGGED, sizes)
    expected = np.asarray(model.full(TOKENS, RAGGED))[RAGGED]
    close(ring[RAGGED], expected)
    close(model.in_pieces(make_cache(model.long, B, T), RAGGED, sizes)[0][RAGGED], expected)
    assert cache.capacity == WINDOW + MOST - 1 and not cache.is_overrun
    np.testing.assert_array_equal(cache.num_tokens[:, 0], RAGGED.sum(1))


any_padding = st.lists(st.booleans(), min_size=B * T, max_size=B * T).map(lambda x: np.array(x).reshape(B, T))


@given(any_padding)
@settings(max_examples=15, deadline=None, database=None)
def test_padding_anywhere_takes_no_slot(is_token):
    model = decoder("rotary")
    logits, _ = model.in_pieces(model.ring(), is_token, BY_THREES)
    close(logits[is_token], np.asarray(model.full(TOKENS, is_token))[is_token])


@pytest.mark.parametrize("max_new", [1, 7, 31])
def test_the_size_of_the_ring_does_not_matter(max_new):
    model = decoder("rotary")
    sizes = [max_new] * (T // max_new) + [T % max_new] * bool(T % max_new)
    logits, _ = model.in_pieces(model.ring(max_new), RAGGED, sizes)
    close(logits[RAGGED], np.asarray(model.full(TOKENS, RAGGED))[RAGGED])


@pytest.mark.parametrize("kwargs", [{"backend": "blockwise"}, {"backend": "xla"}, {"window": 1}], ids=str)
def test_backends_and_a_window_of_one_token_agree(kwargs):
    model = Decoder(positions="rotary", num_layers=1, **kwargs)
    logits, _ = model.in_pieces(model.ring(), RAGGED, BY_THREES)
    close(logits[RAGGED], np.asarray(model.full(TOKENS, RAGGED))[RAGGED])


def test_what_no_token_was_written_to_is_never_attended():
    model = decoder("alibi")

    def disturb(cache):
        def put(x):  # [B K, S, H]
            is_seen = np.repeat(np.asarray(cache.is_token), len(x) // B, axis=0)
            return jnp.where(is_seen[:, :, None], x, 1e3)

        return cache.replace(layers=jax.tree.map(put, cache.layers))

    expected, _ = model.in_pieces(model.ring(), RAGGED, BY_THREES)
    disturbed, _ = model.in_pieces(model.ring(), RAGGED, BY_THREES, disturb)
    np.testing.assert_array_equal(disturbed[RAGGED], expected[RAGGED])


def test_the_memory_of_a_ring_does_not_grow():
    model = decoder("rotary")
    cache = model.ring()
    _, later = model.in_pieces(cache, RAGGED, BY_THREES)
    assert [x.shape for x in jax.tree.leaves(later)] == [x.shape for x in jax.tree.leaves(cache)]
    assert later.layers[0].keys.shape == (B * 2, WINDOW + MOST - 1, 4)


# Taking back


@functools.cache
def ring_after(first):
    """The ring of the rotary model after this many tokens, single ones before threes."""
    model = decoder("rotary")
    return model.in_pieces(model.ring(), RAGGED, [1] * (first % 3) + [3] * (first // 3))[1]


@pytest.mark.parametrize("read, back", [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3)])
def test_a_ring_that_read_wrong_tokens_can_take_them_back(read, back):
    model = decoder("rotary")
    full = np.asarray(model.full(TOKENS, RAGGED))
    for first in range(3, T - 3):
        keep = read - back
        wrong = np.array(TOKENS[:, first : first + read])
        wrong[:, keep:] = (wrong[:, keep:] + 7) % V
        _, cache = model.extend(wrong, RAGGED[:, first : first + read], ring_after(first))
        cache = cache.rewind(back)
        rest = slice(first + keep, first + keep + 3)
        logits, _ = model.extend(TOKENS[:, rest], RAGGED[:, rest], cache)
        close(np.asarray(logits)[RAGGED[:, rest]], full[:, rest][RAGGED[:, rest]])


def test_more_than_a_ring_still_has_is_not_taken_back():
    model = decoder("rotary")
    _, cache = model.in_pieces(model.ring(), RAGGED, [3, 3, 3])
    rewound = cache.rewind(1).rewind(2)
    with pytest.raises(UserError, match="num=4: must be from 0 to 3, the slots that the rolling cache"):
        cache.rewind(4)
    with pytest.raises(UserError, match="num=1: must be from 0 to 0"):
        rewound.rewind(1)
    with pytest.raises(UserError, match="num=1: must be from 0 to 0"):
        model.ring().rewind(1)
    lost = jax.jit(type(rewound).rewind)(rewound, 1)
    for _ in range(4):  # for ever: no later token brings the keys back
        assert lost.is_overrun
        logits, lost = model.extend(TOKENS[:, :3], RAGGED[:, :3], lost)
        assert jnp.all(jnp.isnan(logits))


# What is refused


def test_more_tokens_at_once_than_a_ring_was_made_for_are_refused_under_jit_too():
    model = decoder("rotary")
    with pytest.raises(UserError, match="4 new tokens at once, where the rolling cache was made for 3"):
        model.extend(TOKENS[:, :4], RAGGED[:, :4], model.ring())


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ({"window": 0, "positions": "rotary"}, "model.window=0"),
        ({"positions": "learned"}, "model.positions='learned'"),
        ({"positions": "sinusoidal"}, "model.positions='sinusoidal'"),
        ({"positions": "learned", "window": 0, "attention": "linear"}, "model.positions='learned'"),
    ],
)
def test_a_model_whose_texts_end_with_its_context_gets_no_ring(kwargs, words):
    with pytest.raises(UserError, match=words) as error:
        make_rolling_cache(TransformerConfig(**SIZES | kwargs), B, MOST)
    assert "\n" not in str(error.value) and "on_overflow=re-prefill" in str(error.value)


def test_a_ring_for_no_tokens_is_refused():
    with pytest.raises(UserError, match="max_new=0"):
        decoder("rotary").ring(0)


def test_a_model_with_a_window_still_has_a_full_cache_that_ends():
    model = decoder("rotary")
    with pytest.raises(UserError, match="capacity=18.*model.max_len=17"):
        make_cache(model.config, B, CONTEXT + 1)
