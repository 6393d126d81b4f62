"""Beams that share the slots of their row, beside beams that have copies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import close
from helpers.decoders import RAGGED, TOKENS, VARIANTS, B, Decoder, T, V, variants

from transformer_jax.errors import UserError
from transformer_jax.nn.kv_cache_kinds import make_rolling_cache

W, STEPS = 3, 4
ROWS = np.repeat(np.arange(B), W)
rng = np.random.default_rng(0)
NEW = rng.integers(0, V, (STEPS, B * W, 1))
PARENTS = [np.arange(B * W) // W * W + rng.integers(0, W, B * W) for _ in range(STEPS)]  # of the same row


@functools.cache
def plain_decoder(variant):
    """A decoder of one layer; rotary has two, whose slots are in the same order, and a pattern its four."""
    return Decoder(**{"num_layers": 2 if variant == "rotary" else 1} | VARIANTS[variant])


def after_steps(model, cache):
    """Logits of every step, with beams that go on from others in between."""
    found = []
    for tokens, parents in zip(NEW, PARENTS, strict=True):
        logits, cache = model.extend(tokens, np.ones((B * W, 1), bool), cache, last_only=True)
        found.append(logits)
        cache = cache.reorder(jnp.array(parents))
    return np.array(found), cache


def read(model, cache_type="model"):
    cache = model.cache() if cache_type == "model" else model.cache().with_type(cache_type)
    return model.extend(TOKENS, RAGGED, cache)[1]


@variants
def test_beams_that_share_slots_have_the_logits_of_beams_with_copies(variant):
    model = plain_decoder(variant)
    forked, _ = after_steps(model, read(model).expand(W, T + W * STEPS))
    copied, _ = after_steps(model, read(model).reorder(ROWS))
    close(forked, copied)


@pytest.mark.parametrize("changes", [{"window": 3, "positions": "alibi"}, {"window": 5}])
def test_so_they_have_with_a_window(changes):
    model = Decoder(**{"positions": "rotary", "num_layers": 1} | changes)
    forked, _ = after_steps(model, read(model).expand(W, T + W * STEPS))
    copied, _ = after_steps(model, read(model).reorder(ROWS))
    close(forked, copied)


def test_so_they_have_with_a_cache_of_8_bits():
    model = plain_decoder("rotary")
    forked, _ = after_steps(model, read(model, "int8").expand(W, T + W * STEPS))
    copied, _ = after_steps(model, read(model, "int8").reorder(ROWS))
    np.testing.assert_allclose(forked, copied, atol=1e-4)


def test_no_key_is_moved_and_the_prompt_is_there_once():
    model = plain_decoder("rotary")
    cache = read(model).expand(W, T + W * STEPS)
    written, moved = cache.layers[0].keys, cache.reorder(jnp.array(PARENTS[0]))
    assert moved.layers[0].keys is written and len(written) == B * model.config.num_kv_heads
    assert cache.capacity == T + W * STEPS


def test_a_fork_that_is_full_gives_nan():
    model = plain_decoder("rotary")
    cache = model.cache().replace(
        layers=jax.tree.map(lambda x: x[:, : T + W], model.cache().layers), is_token=jnp.zeros((B, T + W), bool)
    )
    _, cache = model.extend(TOKENS, RAGGED, cache)
    logits, _ = after_steps(model, cache.expand(W, T + W))
    assert np.all(np.isfinite(logits[0])) and np.all(np.isnan(logits[1:]))


def test_what_has_no_slots_of_its_own_for_beams_is_copied():
    for changes in ({"attention": "linear", "positions": "none"}, {"window": 5, "positions": "rotary"}):
        model = Decoder(**changes, num_layers=1)
        cache = model.extend(TOKENS, RAGGED, make_rolling_cache(model.config, B, T))[1]
        beams = cache.expand(W, 2)
        assert type(beams) is type(cache) and len(beams.num_tokens) == B * W
        expected, _ = after_steps(model, cache.reorder(ROWS))
        close(after_steps(model, beams)[0], expected)


def test_from_slots_that_beams_share_none_are_taken_back():
    model = plain_decoder("rotary")
    cache = read(model).expand(W, T + W * STEPS)
    for take_back in (lambda: cache.rewind(1), lambda: cache.accept_prefix(jnp.zeros(B, jnp.int32), 1)):
        with pytest.raises(UserError, match="cache: holds beams, which share slots"):
            take_back()
