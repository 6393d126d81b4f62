"""Beams that share the slots of their row, beside beams that have copies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import close
from helpers.decoders import RAGGED, TOKENS, VARIANTS, B, Decoder, T, V, variants

from transformer_jax.errors import UserError
from transformer_jax.nn.kv_cache import accept_prefix, as_type, expand_beams, make_rolling_cache, reorder, rewind

W, STEPS = 3, 4
ROWS = np.repeat(np.arange(B), W)
rng = np.random.default_rng(0)
NEW = rng.integers(0, V, (STEPS, B * W, 1))
PARENTS = [np.arange(B * W) // W * W + rng.integers(0, W, B * W) for _ in range(STEPS)]  # of the same row


@functools.cache
def plain_decoder(variant):
    """A decoder of one layer; rotary has two, whose slots are in the same order."""
    return Decoder(**VARIANTS[variant], num_layers=2 if variant == "rotary" else 1)


def after_steps(model, cache):
    """Logits of every step, with beams that go on from others in between."""
    found = []
    for tokens, parents in zip(NEW, PARENTS, strict=True):
        logits, cache = model.extend(tokens, np.ones((B * W, 1), bool), cache, last_only=True)
        found.append(logits)
        cache = reorder(cache, jnp.array(parents), with_source=False)
    return np.array(found), cache


def read(model, cache_type="model"):
    cache = model.cache() if cache_type == "model" else jax.jit(as_type, static_argnums=1)(model.cache(), cache_type)
    return model.extend(TOKENS, RAGGED, cache)[1]


@variants
def test_beams_that_share_slots_have_the_logits_of_beams_with_copies(variant):
    model = plain_decoder(variant)
    forked, _ = after_steps(model, expand_beams(read(model), B, W, T + W * STEPS))
    copied, _ = after_steps(model, reorder(read(model), ROWS))
    close(forked, copied)


@pytest.mark.parametrize("changes", [{"window": 3, "positions": "alibi"}, {"window": 5}])
def test_so_they_have_with_a_window(changes):
    model = Decoder(**{"positions": "rotary", "num_layers": 1} | changes)
    forked, _ = after_steps(model, expand_beams(read(model), B, W, T + W * STEPS))
    copied, _ = after_steps(model, reorder(read(model), ROWS))
    close(forked, copied)


def test_so_they_have_with_a_cache_of_8_bits():
    model = plain_decoder("rotary")
    forked, _ = after_steps(model, expand_beams(read(model, "int8"), B, W, T + W * STEPS))
    copied, _ = after_steps(model, reorder(read(model, "int8"), ROWS))
    np.testing.assert_allclose(forked, copied, atol=1e-4)


def test_no_key_is_moved_and_the_prompt_is_there_once():
    model = plain_decoder("rotary")
    cache = expand_beams(read(model), B, W, T + W * STEPS)
    written, moved = cache.layers[0].keys, reorder(cache, jnp.array(PARENTS[0]), with_source=False)
    assert moved.layers[0].keys is written and len(written) == B * model.config.num_kv_heads
    assert cache.capacity == T + W * STEPS


def test_a_fork_that_is_full_gives_nan():
    model = plain_decoder("rotary")
    cache = model.cache()._replace(
        layers=jax.tree.map(lambda x: x[:, : T + W], model.cache().layers), is_token=jnp.zeros((B, T + W), bool)
    )
    _, cache = model.extend(TOKENS, RAGGED, cache)
    logits, _ = after_steps(model, expand_beams(cache, B, W, T + W))
    assert np.all(np.isfinite(logits[0])) and np.all(np.isnan(logits[1:]))


def test_what_has_no_slots_of_its_own_for_beams_is_copied():
    for changes in ({"attention": "linear", "positions": "none"}, {"window": 5, "positions": "rotary"}):
        model = Decoder(**changes, num_layers=1)
        cache = model.extend(TOKENS, RAGGED, make_rolling_cache(model.config, B, T))[1]
        beams = expand_beams(cache, B, W, 2)
        assert beams.beams is None and len(beams.num_tokens) == B * W
        expected, _ = after_steps(model, reorder(cache, ROWS))
        close(after_steps(model, beams)[0], expected)


def test_from_slots_that_beams_share_none_are_taken_back():
    model = plain_decoder("rotary")
    cache = expand_beams(read(model), B, W, T + W * STEPS)
    for take_back in (lambda: rewind(cache, 1), lambda: accept_prefix(cache, 1, jnp.zeros(B, jnp.int32))):
        with pytest.raises(UserError, match="cache: holds beams, which share slots"):
            take_back()
