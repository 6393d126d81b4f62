"""KV cache protocol: every class of cache meets it, and a class of one's own needs nothing but its methods."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import close
from helpers.decoders import CAPACITY, RAGGED, TOKENS, VARIANTS, B, Decoder, T, V, variants
from helpers.runs import make_run

import transformer_jax as tj
from transformer_jax.errors import UserError
from transformer_jax.nn.kv_cache import KeysValues, KVCache
from transformer_jax.nn.kv_cache_kinds import CACHES
from transformer_jax.nn.masks import Mask

NEXT = np.random.default_rng(7).integers(0, V, (B, 3))
ALL = np.ones((B, 3), bool)


class ShiftCache(KVCache, kw_only=True):
    """Cache whose newest tokens are in the first slots: every append shifts the older ones. Slow, and plain."""

    positions: jax.Array  # int32 [B, S] of the token in each slot; -1: none

    @classmethod
    def empty(cls, config, batch_size, capacity):
        zeros = jnp.zeros((batch_size, capacity, config.num_kv_heads, config.head_dim), config.dtype)
        layers = (KeysValues.from_projections(zeros, zeros),) * config.num_layers
        positions = jnp.full((batch_size, capacity), -1)
        no_tokens = jnp.zeros((batch_size, 1), jnp.int32)
        return cls(layers, positions >= 0, no_tokens, jnp.int32(0), positions=positions)

    def append(self, is_token):
        new = jnp.where(is_token, self.num_tokens + jnp.cumsum(is_token, axis=1) - 1, -1)
        return self.count(is_token)._with_positions(self._shift(self.positions, new))

    def mask(self, is_token):
        newest = self.positions[:, : is_token.shape[1]][:, ::-1]
        return Mask(
            is_key=self.is_token,
            query_positions=jnp.maximum(newest, 0),
            key_positions=self.positions,
            is_causal=True,
            is_by_position=True,
        )

    def write(self, layer, k_BTKH, v_BTKH):
        new = KeysValues.from_projections(k_BTKH, v_BTKH)
        return self.with_layer(layer, self.layers[layer].update(new, self._shift))

    def rewind(self, num):
        index = jnp.arange(self.capacity) + num
        is_left = index < self.capacity
        positions = jnp.where(is_left, self.positions[:, index % self.capacity], -1)
        layers = jax.tree.map(lambda x: x[:, index % self.capacity], self.layers)
        num_tokens = jnp.sum(positions >= 0, axis=1, keepdims=True)
        rewound = self.replace(layers=layers, num_tokens=num_tokens, num_written=self.num_written - num)
        return rewound._with_positions(positions)

    def accept_prefix(self, lengths, num_newest):
        slot = jnp.arange(self.capacity)
        is_refused = slot < num_newest - lengths[:, None]
        positions = jnp.where(is_refused, -1, self.positions)
        return self.replace(num_tokens=jnp.sum(positions >= 0, axis=1, keepdims=True))._with_positions(positions)

    def clear(self, rows):
        return self.replace(num_tokens=self.num_tokens.at[rows].set(0))._with_positions(self.positions.at[rows].set(-1))

    def _shift(self, old, new):
        return jnp.concatenate([new[:, ::-1], old], axis=1)[:, : self.capacity]

    def _with_positions(self, positions):
        return self.replace(positions=positions, is_token=positions >= 0)


KINDS = CACHES | {"shift": ShiftCache}
kinds = pytest.mark.parametrize("kind", KINDS)


@functools.cache
def model_of(kind):
    changes = {"linear": {"attention": "linear", "positions": "learned"}, "rolling": {"window": 5}}
    return Decoder(**{"positions": "rotary", "num_layers": 1} | changes.get(kind, {}))


@functools.cache
def after_reading(kind):
    model = model_of(kind)
    return model.extend(TOKENS, RAGGED, KINDS[kind].empty(model.config, B, CAPACITY))[1]


@kinds
def test_a_row_that_is_cleared_starts_again_and_the_others_continue(kind):
    model = model_of(kind)
    cache = after_reading(kind)
    rows = np.array([1, 3])
    cleared = cache.clear(rows)
    logits, later = model.extend(NEXT, ALL, cleared)
    expected = np.array(model.extend(NEXT, ALL, cache)[0])
    expected[rows] = model.extend(NEXT, ALL, KINDS[kind].empty(model.config, B, CAPACITY))[0][rows]
    close(logits, expected)
    lengths = RAGGED.sum(1) + 3
    lengths[rows] = 3
    np.testing.assert_array_equal(later.num_tokens[:, 0], lengths)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "linear"])
def test_each_row_keeps_a_prefix_of_its_own_length(kind):
    model = model_of(kind)
    lengths = np.array([2, 0, 3, 1, 2])
    _, extended = model.extend(NEXT, ALL, after_reading(kind))
    kept = jax.jit(lambda cache: cache.accept_prefix(lengths, 3))(extended)
    np.testing.assert_array_equal(kept.num_tokens[:, 0], RAGGED.sum(1) + lengths)
    logits, _ = model.extend(NEXT, ALL, kept)
    _, again = model.extend(NEXT, np.arange(3) < lengths[:, None], after_reading(kind))
    close(logits, model.extend(NEXT, ALL, again)[0])


@kinds
def test_padding_that_is_dropped_leaves_no_trace(kind):
    model = model_of(kind)
    _, padded = model.extend(NEXT, ~ALL, after_reading(kind))
    logits, _ = model.extend(NEXT, ALL, padded.drop_padding(3))
    close(logits, model.extend(NEXT, ALL, after_reading(kind))[0])


@kinds
def test_rows_are_gathered_in_any_order_and_number(kind):
    model = model_of(kind)
    rows = np.array([4, 0, 0, 2, 4, 1, 3])
    logits, _ = model.extend(NEXT[rows], ALL[rows], after_reading(kind).reorder(rows))
    close(logits, np.asarray(model.extend(NEXT, ALL, after_reading(kind))[0])[rows])


@pytest.mark.parametrize("kind", ["rolling", "linear"])
def test_rows_that_ended_are_taken_out_read_another_text_and_are_put_back(kind):
    model = model_of("linear") if kind == "linear" else model_of("full")
    _, cache = model.extend(TOKENS, RAGGED, KINDS[kind].empty(model.config, B, CAPACITY))
    rows = np.array([3, 1])
    _, new = model.extend(TOKENS[:2, :4], RAGGED[2:4, :4], cache.clear(rows).reorder(rows))
    logits, later = model.extend(NEXT, ALL, cache.insert(rows, new))
    expected = np.array(model.extend(NEXT, ALL, cache)[0])
    expected[rows] = model.extend(NEXT[rows], ALL[rows], new)[0]
    close(logits, expected)
    assert later.num_tokens[3, 0] == RAGGED[2, :4].sum() + 3


def test_a_full_cache_grows_and_takes_no_row_of_another():
    model = model_of("full")
    larger = after_reading("full").with_capacity(17)
    assert larger.capacity == 17
    close(model.extend(NEXT, ALL, larger)[0], model.extend(NEXT, ALL, after_reading("full"))[0])
    with pytest.raises(UserError, match="rows of a full cache share their slots"):
        larger.insert(np.array([0]), larger)


def test_a_rolling_cache_without_a_window_is_a_full_cache_until_its_slots_end():
    model = model_of("full")
    empty = CACHES["rolling"].empty(model.config, B, CAPACITY)
    logits, cache = model.extend(TOKENS, RAGGED, empty)
    close(logits[RAGGED], np.asarray(model.full(TOKENS, RAGGED))[RAGGED])
    for _ in range(2):
        assert not cache.is_overrun
        logits, cache = model.extend(NEXT, ALL, cache)
        assert np.all(np.isfinite(logits))
    assert cache.num_tokens.max() == CAPACITY
    logits, cache = model.extend(NEXT[:, :1], ALL[:, :1], cache)
    assert cache.is_overrun and np.all(np.isnan(logits))


@pytest.mark.parametrize("call", [lambda cache: cache.clear(np.array([0])), lambda cache: cache.expand(2)])
def test_beams_that_share_slots_are_neither_cleared_nor_expanded(call):
    with pytest.raises(UserError, match="cache: holds beams"):
        call(after_reading("full").expand(3, 19))


# A class of one's own, in place of the full cache


@variants
def test_with_another_class_of_cache_chunks_equal_one_full_pass(variant, monkeypatch):
    monkeypatch.setitem(CACHES, "full", ShiftCache)
    model = Decoder(**{"num_layers": 1} | VARIANTS[variant])
    logits, cache = model.in_chunks(RAGGED, [3, 4])
    assert type(cache) is ShiftCache
    close(logits[RAGGED], np.asarray(model.full(TOKENS, RAGGED))[RAGGED])
    assert cache.num_written == T


@pytest.mark.parametrize(
    "settings",
    [{}, {"method": "beam", "num_beams": 3, "num_samples": 2}, {"prompt_lookup": 1, "method": "greedy"}],
    ids=["sample", "beam", "drafts"],
)
def test_with_another_class_of_cache_all_texts_are_the_same(settings, monkeypatch):
    run, prompts = make_run("byte"), ["the cat", "狐", "a"]
    config = tj.GenerationConfig(max_new_tokens=7, seed=3, **settings)
    expected = tj.complete(run, prompts, config)
    monkeypatch.setitem(CACHES, "full", ShiftCache)
    for found, wanted in zip(tj.complete(run, prompts, config), expected, strict=True):
        assert (found.tokens, found.finish) == (wanted.tokens, wanted.finish)
        close(found.log_probs, wanted.log_probs)
