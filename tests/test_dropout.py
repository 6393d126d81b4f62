import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_jax.nn.dropout import Dropout, drop, keep_mask

SHAPE = (11, 13, 1009)
MASK = 2**32 - 1


def normal(*shape):
    return jax.random.normal(jax.random.key(0), shape)


@functools.cache
def masks(rate=0.3, num=24):
    make = jax.jit(jax.vmap(lambda seed: keep_mask(jax.random.key(seed), rate, SHAPE)))
    return np.asarray(make(jnp.arange(num)))


def z_scores(products, probability):
    """How many standard errors the means of rows of 0 and 1 lie from the probability of 1."""
    return (products.mean(axis=-1) - probability) * np.sqrt(products.shape[-1] / probability / (1.0 - probability))


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_each_mask_keeps_as_many_as_its_rate_says_within_chance(rate):
    scores = z_scores(masks(rate).reshape(24, -1), 1.0 - rate)
    assert np.abs(scores).max() < 4.5
    assert 0.5 < scores.std() < 1.6  # neither worse nor better than chance


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_what_is_kept_tells_nothing_of_its_neighbours_along_any_axis(axis):
    for distance in range(1, min(SHAPE[axis], 100)):
        far, near = (
            np.take(masks(), np.arange(*ends), axis + 1)
            for ends in ((distance, SHAPE[axis]), (0, SHAPE[axis] - distance))
        )
        assert abs(z_scores((far & near).reshape(1, -1), 0.49)[0]) < 5.0


def test_what_is_kept_with_one_key_tells_nothing_of_another():
    flat = masks().reshape(24, -1)
    scores = [z_scores(flat[i] & flat[j], 0.49) for i in range(24) for j in range(i)]
    assert np.abs(scores).max() < 5.0 and 0.8 < np.std(scores) < 1.2
    # Nor is one mask another one, moved.
    moved = [z_scores(flat[0, d:] & flat[1, : flat.shape[1] - d], 0.49) for d in range(1, 500)]
    assert np.abs(moved).max() < 5.0


def test_every_place_is_kept_as_often_as_any_other():
    make = jax.jit(jax.vmap(lambda key: keep_mask(key, 0.3, (7, 11))))
    counts = make(jax.random.split(jax.random.key(5), 4001)).sum(axis=0).ravel()
    chi_square = float(((counts - 4001 * 0.7) ** 2 / (4001 * 0.7 * 0.3)).sum())  # 77 degrees of freedom
    assert 40 < chi_square < 130


def slow_mask(key, rate, shape):
    """The hash of the docstring in Python's integers, an element after the other."""

    def mix(bits):
        bits = ((bits ^ (bits >> 16)) * 0x85EBCA6B) & MASK
        bits = ((bits ^ (bits >> 13)) * 0xC2B2AE35) & MASK
        return bits ^ (bits >> 16)

    first, second = (int(x) for x in jax.random.bits(key, (2,), jnp.uint32))
    kept = [mix(mix((i + first) & MASK) ^ second) >= round(rate * 2**32) for i in range(int(np.prod(shape)))]
    return np.reshape(kept, shape)


@settings(max_examples=25, deadline=None, database=None)
@given(
    st.integers(0, 2**31), st.sampled_from([0.1, 0.25, 0.7]), st.sampled_from([(), (7,), (3, 5), (2, 3, 11), (5, 0)])
)
def test_the_mask_is_the_hash_of_each_index_in_the_order_of_the_array(seed, rate, shape):
    key = jax.random.key(seed)
    np.testing.assert_array_equal(keep_mask(key, rate, shape), slow_mask(key, rate, shape))


def test_what_is_kept_is_scaled_up_and_the_rest_is_0_in_the_type_of_the_input():
    x = normal(3, 7, 5)
    kept = np.asarray(keep_mask(jax.random.key(1), 0.25, x.shape))
    for dtype in (jnp.float32, jnp.bfloat16):
        out = drop(x.astype(dtype), 0.25, jax.random.key(1))
        assert out.dtype == dtype
        np.testing.assert_array_equal(out, np.where(kept, x.astype(dtype) / 0.75, 0.0).astype(dtype))


def test_the_gradient_passes_where_the_value_did_and_nowhere_else():
    x, key = normal(3, 7), jax.random.key(2)
    gradient = jax.jit(jax.grad(lambda x: drop(x, 0.4, key).sum()))(x)
    np.testing.assert_allclose(gradient, np.where(keep_mask(key, 0.4, x.shape), 1 / 0.6, 0.0), rtol=1e-6)


def test_only_training_drops_and_only_at_a_rate_above_0():
    x = normal(3, 7)
    np.testing.assert_array_equal(Dropout(0.5).apply({}, x), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, deterministic=False), x)
    assert (Dropout(0.5).apply({}, x, deterministic=False, rngs={"dropout": jax.random.key(0)}) == 0).any()


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_a_rate_of_nearly_1_keeps_nearly_nothing_with_keys_of_every_kind(impl):
    assert keep_mask(jax.random.key(0, impl=impl), 1.0 - 1e-12, (101, 103)).sum() <= 1
