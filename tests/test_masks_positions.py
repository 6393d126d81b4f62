import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_jax import masks
from transformer_jax.positions import POSITIONS, count_tokens, rotary, sinusoid

B, T, N, H = 5, 7, 3, 10
lightly = settings(max_examples=50, deadline=None, database=None)
rows_of_bools = st.lists(st.lists(st.booleans(), min_size=T, max_size=T), min_size=B, max_size=B).map(np.array)


def close(actual, expected):
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max(initial=1))


def pictures(mask):
    """[B, T, S] -> for each row of the batch the lines "1 1 . ."."""
    return [[" ".join("1" if may else "." for may in query) for query in row] for row in np.asarray(mask)]


def test_causal_mask_without_a_cache():
    assert pictures(masks.causal(4, 4)) == [[
        "1 . . .",
        "1 1 . .",
        "1 1 1 .",
        "1 1 1 1",
    ]]  # fmt: skip


def test_causal_mask_after_two_slots_of_a_cache():
    expected = [[
        "1 1 1 . .",
        "1 1 1 1 .",
    ]]  # fmt: skip
    assert pictures(masks.causal(2, 5, first_slot=2)) == expected
    assert pictures(jax.jit(lambda slot: masks.causal(2, 5, slot))(2)) == expected


def test_padding_and_causal_masks_compose():
    is_token = jnp.array([[0, 1, 1], [1, 1, 0]], bool)
    assert pictures(masks.padding(is_token)) == [[". 1 1"], ["1 1 ."]]
    assert pictures(masks.causal(3, 3) & masks.padding(is_token)) == [
        [". . .", ". 1 .", ". 1 1"],
        ["1 . .", "1 1 .", "1 1 ."],
    ]


def test_positions_count_tokens_whatever_the_side_of_the_padding():
    is_token = jnp.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 0, 1]], bool)
    expected = [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2], [0, 0, 1, 1, 2]]
    np.testing.assert_array_equal(count_tokens(is_token), expected)


@given(rows_of_bools, st.lists(st.integers(0, 11), min_size=B, max_size=B))
@lightly
def test_counting_goes_on_after_the_tokens_before(is_token, before):
    expected = np.zeros((B, T), int)
    for b in range(B):
        seen = before[b]
        for t in range(T):
            seen += is_token[b, t]
            expected[b, t] = max(seen - 1, 0)
    np.testing.assert_array_equal(count_tokens(jnp.array(is_token), jnp.array(before)[:, None]), expected)


@pytest.mark.parametrize("d_model", [1, 10, 11])
def test_sinusoid_is_the_formula_of_the_paper(d_model):
    positions = np.arange(B * T).reshape(B, T)
    expected = np.zeros((B, T, d_model))
    for b in range(B):
        for t in range(T):
            for number in range(d_model):
                i = number // 2
                angle = positions[b, t] / 10000 ** (2 * i / d_model)
                expected[b, t, number] = math.sin(angle) if number % 2 == 0 else math.cos(angle)
    close(sinusoid(jnp.array(positions), d_model), expected)


def heads(seed):
    return jnp.array(np.random.default_rng(seed).normal(size=(B, T, N, H)), jnp.float32)


def positions_of(seed):
    return jnp.array(np.random.default_rng(seed).integers(0, 31, (B, T)))


def test_rotary_turns_pairs_that_are_half_a_head_apart_by_the_angle_of_the_paper():
    x, positions, theta = heads(0), positions_of(1), 100.0
    x64, expected = np.asarray(x, np.float64), np.zeros((B, T, N, H))
    for i in range(H // 2):
        angle = np.asarray(positions)[:, :, None] * theta ** (-2 * i / H)
        first, second = x64[..., i], x64[..., i + H // 2]
        expected[..., i] = first * np.cos(angle) - second * np.sin(angle)
        expected[..., i + H // 2] = first * np.sin(angle) + second * np.cos(angle)
    close(rotary(x, positions, theta), expected)


schemes = pytest.mark.parametrize("scheme", POSITIONS.values(), ids=POSITIONS)


@schemes
def test_turning_keeps_norms(scheme):
    turned = scheme.turn(heads(2), positions_of(3), 10000.0)
    close(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(heads(2), axis=-1))


@schemes
def test_turning_by_position_0_is_the_identity(scheme):
    turned = scheme.turn(heads(4), jnp.zeros((B, T), int), 10000.0)
    np.testing.assert_array_equal(turned, heads(4))


@schemes
def test_products_of_turned_queries_and_keys_depend_on_differences_of_positions_only(scheme):
    def scores(shift):
        positions = positions_of(7) + shift
        q, k = (scheme.turn(heads(seed), positions, 10000.0) for seed in (5, 6))
        return jnp.einsum("BTNH,BSNH->BNTS", q, k)

    for shift in (1, 13, 29):
        close(scores(shift), scores(0))


def test_rotary_products_do_depend_on_the_differences():
    q, k = (rotary(heads(seed), positions_of(7), 10000.0) for seed in (5, 6))
    moved = rotary(heads(6), positions_of(7) + 1, 10000.0)
    assert jnp.abs(jnp.sum(q * moved, -1) - jnp.sum(q * k, -1)).max() > 0.1


def test_rotary_differs_with_theta():
    assert jnp.abs(rotary(heads(8), positions_of(9), 100.0) - rotary(heads(8), positions_of(9), 10000.0)).max() > 0.1


def test_rotary_angles_are_exact_in_bfloat16_and_at_long_positions():
    x, positions = heads(10), jnp.broadcast_to(1009 + jnp.arange(T), (B, T))
    turned = rotary(x.astype(jnp.bfloat16), positions, 10000.0)
    assert turned.dtype == jnp.bfloat16
    np.testing.assert_allclose(turned.astype(jnp.float32), rotary(x, positions, 10000.0), atol=0.05)


def test_every_scheme_tells_positions_apart_in_exactly_one_way():
    for scheme in POSITIONS.values():
        turns = bool(jnp.any(scheme.turn(heads(1), positions_of(1), 10000.0) != heads(1)))
        assert (scheme.vectors is not None) + scheme.is_learned + turns == 1
