import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import close
from helpers.decoders import CAPACITY, MAX_LEN, RAGGED, SIZES, TOKENS, B, Decoder, T, V, decoder, variants
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.nn.kv_cache_kinds import make_cache

lightly = settings(max_examples=15, deadline=None, database=None)
any_padding = st.lists(st.booleans(), min_size=B * T, max_size=B * T).map(lambda x: np.array(x).reshape(B, T))
# Pieces of one to three tokens, which are three programs; the laws of test_laws.py try every split.
cuts = st.lists(st.integers(1, 3), min_size=T, max_size=T).map(lambda sizes: [x for x in np.cumsum(sizes) if x < T])


@variants
@given(cuts, any_padding)
@lightly
def test_extend_equals_a_full_pass_for_every_split_and_every_padding(variant, cuts, is_token):
    logits, cache = decoder(variant).in_chunks(is_token, cuts)
    close(logits[is_token], np.asarray(decoder(variant).full(TOKENS, is_token))[is_token])
    assert cache.num_written == T
    np.testing.assert_array_equal(cache.is_token[:, :T], is_token)
    np.testing.assert_array_equal(cache.num_tokens[:, 0], is_token.sum(1))


@variants
@pytest.mark.parametrize("cuts", [[], [3], [1, 2, 3, 4, 5, 6]], ids=["prefill", "two_chunks", "one_by_one"])
def test_extend_equals_a_full_pass_on_prompts_of_unequal_length(variant, cuts):
    logits, _ = decoder(variant).in_chunks(RAGGED, cuts)
    close(logits[RAGGED], np.asarray(decoder(variant).full(TOKENS, RAGGED))[RAGGED])


@variants
def test_what_padding_and_unwritten_slots_hold_is_never_attended(variant):
    def disturb(cache):
        def put(x):  # [B K, S, H]
            is_seen = np.repeat(np.asarray(cache.is_token), len(x) // B, axis=0)
            return jnp.where(is_seen[:, :, None], x, 1e3)

        return cache.replace(layers=jax.tree.map(put, cache.layers))

    expected, _ = decoder(variant).in_chunks(RAGGED, [2, 3])
    disturbed, _ = decoder(variant).in_chunks(RAGGED, [2, 3], disturb)
    np.testing.assert_array_equal(disturbed[RAGGED], expected[RAGGED])


@variants
def test_reading_does_not_change_what_was_written(variant):
    _, half = decoder(variant).extend(TOKENS[:, :3], RAGGED[:, :3], decoder(variant).cache())
    _, whole = decoder(variant).extend(TOKENS[:, 3:], RAGGED[:, 3:], half)
    for before, after in zip(jax.tree.leaves(half.layers), jax.tree.leaves(whole.layers), strict=True):
        np.testing.assert_array_equal(after[:, :3], before[:, :3])
        assert jnp.all(after[:, T:] == 0) and jnp.any(after[:, 3:T] != 0)


@variants
def test_last_only_gives_the_logits_of_the_last_token_of_each_row(variant):
    logits, _ = decoder(variant).extend(TOKENS, RAGGED, decoder(variant).cache())
    last, _ = decoder(variant).extend(TOKENS, RAGGED, decoder(variant).cache(), last_only=True)
    last_token = [6, 6, 6, 3, 0]
    assert last.shape == (B, V)
    close(last, np.asarray(logits)[np.arange(B), last_token])


def test_the_capacity_of_the_cache_does_not_matter():
    small, large = (decoder("learned").extend(TOKENS, RAGGED, decoder("learned").cache(n))[0] for n in (11, CAPACITY))
    close(np.asarray(small)[RAGGED], np.asarray(large)[RAGGED])


def test_an_overfull_cache_is_refused_outside_jit():
    cache = decoder("learned").cache(11)
    with pytest.raises(UserError, match="12 new slots.*capacity=11"):
        decoder("learned").eager_extend(np.ones((B, 12), int), np.ones((B, 12), bool), cache)
    _, cache = decoder("learned").extend(TOKENS, RAGGED, cache)
    with pytest.raises(UserError, match="5 new slots.*capacity=11 with 7 already written"):
        decoder("learned").eager_extend(TOKENS[:, :5], RAGGED[:, :5], cache)


def test_a_cache_can_be_filled_to_its_last_slot():
    _, cache = decoder("learned").extend(TOKENS, RAGGED, decoder("learned").cache(11))
    logits, cache = decoder("learned").extend(TOKENS[:, :4], ~RAGGED[:, :4], cache)
    assert jnp.all(jnp.isfinite(logits)) and cache.num_written == 11 and not cache.is_overrun


def test_an_overfull_cache_gives_nan_inside_jit():
    extend, cache = decoder("learned").extend, decoder("learned").cache()
    for _ in range(CAPACITY // 3):
        logits, cache = extend(TOKENS[:, :3], RAGGED[:, :3], cache)
        assert jnp.all(jnp.isfinite(logits)) and not cache.is_overrun
    for _ in range(2):
        logits, cache = extend(TOKENS[:, :3], RAGGED[:, :3], cache)
        assert jnp.all(jnp.isnan(logits)) and cache.is_overrun


def test_a_cache_longer_than_the_context_is_refused():
    with pytest.raises(UserError, match="capacity=18.*model.max_len=17"):
        decoder("learned").cache(MAX_LEN + 1)


def test_a_cache_has_a_layer_for_each_block_with_the_key_value_heads_alone():
    config = TransformerConfig(**SIZES, num_kv_heads=2, dtype="bfloat16")
    cache = make_cache(config, B, CAPACITY)
    assert len(cache.layers) == config.num_layers and cache.capacity == CAPACITY
    for array in jax.tree.leaves(cache.layers):
        assert array.shape == (B * 2, CAPACITY, 4) and array.dtype == jnp.bfloat16


def test_a_bfloat16_model_decodes_as_it_reads():
    decode = Decoder(dtype="bfloat16", positions="rotary", num_layers=1)
    logits, _ = decode.in_chunks(RAGGED, [3])
    full = np.asarray(decode.full(TOKENS, RAGGED))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits[RAGGED], full[RAGGED], atol=0.05 * np.abs(full).max())
