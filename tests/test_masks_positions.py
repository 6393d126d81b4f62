"""Masks as pictures, in whole and in parts, and positions: counting, and sinusoids."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import close
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_jax.nn import masks
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.positions import POSITIONS, segment_positions, sinusoid, token_positions

B, T, S = 5, 7, 11
lightly = settings(max_examples=50, deadline=None, database=None)
rows_of_bools = st.lists(st.lists(st.booleans(), min_size=T, max_size=T), min_size=B, max_size=B).map(np.array)


# Masks


def pictures(mask):
    """[B, T, S] -> for each row of the batch the lines "1 1 . ."."""
    return [[" ".join("1" if may else "." for may in query) for query in row] for row in np.asarray(mask)]


def test_causal_mask_without_a_cache():
    assert pictures(masks.causal(4, 4)) == [["1 . . .", "1 1 . .", "1 1 1 .", "1 1 1 1"]]


def test_causal_mask_after_two_slots_of_a_cache():
    expected = [["1 1 1 . .", "1 1 1 1 ."]]
    assert pictures(masks.causal(2, 5, first_slot=2)) == expected
    assert pictures(jax.jit(lambda slot: masks.causal(2, 5, slot))(2)) == expected


def test_padding_and_causal_masks_compose():
    is_token = jnp.array([[0, 1, 1], [1, 1, 0]], bool)
    assert pictures(masks.padding(is_token)) == [[". 1 1"], ["1 1 ."]]
    assert pictures(Mask(is_key=is_token, is_causal=True).block(0, 3, 0, 3)) == [
        [". . .", ". 1 .", ". 1 1"],
        ["1 . .", "1 1 .", "1 1 ."],
    ]


def test_a_window_hides_keys_at_its_distance_and_beyond_on_both_sides_unless_causal():
    assert pictures(Mask(window=2, is_causal=True).block(0, 4, 0, 4)) == [["1 . . .", "1 1 . .", ". 1 1 .", ". . 1 1"]]
    assert pictures(Mask(window=2).block(0, 4, 0, 4)) == [["1 1 . .", "1 1 1 .", ". 1 1 1", ". . 1 1"]]
    assert pictures(Mask(window=2, is_causal=True, first_slot=2).block(0, 2, 0, 5)) == [[". 1 1 . .", ". . 1 1 ."]]


def test_a_window_counts_positions_not_slots():
    is_token = jnp.array([[1, 1, 0, 0, 1, 1], [0, 1, 0, 1, 0, 1]], bool)
    positions = token_positions(is_token)
    mask = Mask(is_key=is_token, query_positions=positions, key_positions=positions, window=2, is_causal=True)
    of_tokens = np.asarray(mask.block(0, 6, 0, 6))
    assert pictures([of_tokens[0][[0, 1, 4, 5]]]) == [["1 . . . . .", "1 1 . . . .", ". 1 . . 1 .", ". . . . 1 1"]]
    assert pictures([of_tokens[1][[1, 3, 5]]]) == [[". 1 . . . .", ". 1 . 1 . .", ". . . 1 . 1"]]


def test_texts_in_a_row_see_themselves_alone():
    segments = jnp.array([[0, 0, 1, 1, 1], [3, 2, 2, 2, 3]])
    mask = Mask(query_segments=segments, key_segments=segments)
    assert pictures(mask.block(0, 5, 0, 5)) == [
        ["1 1 . . .", "1 1 . . .", ". . 1 1 1", ". . 1 1 1", ". . 1 1 1"],
        ["1 . . . 1", ". 1 1 1 .", ". 1 1 1 .", ". 1 1 1 .", "1 . . . 1"],
    ]
    assert pictures(mask.replace(is_causal=True).block(0, 5, 0, 5))[0] == [
        "1 . . . .",
        "1 1 . . .",
        ". . 1 . .",
        ". . 1 1 .",
        ". . 1 1 1",
    ]


def random(*shape, below=2):
    return np.random.default_rng(len(shape) + sum(shape)).integers(0, below, shape)


KEYS = dict(is_key=random(B, S).astype(bool))
SEGMENTS = dict(query_segments=random(B, T, below=3), key_segments=random(B, S, below=3))
PLACES = dict(query_positions=4 + random(B, T).cumsum(1), key_positions=random(B, S).cumsum(1))
FIELDS = {
    "rule": dict(may_attend=random(B, T, S).astype(bool)),
    "rule_of_one_row": dict(may_attend=random(1, T, S).astype(bool)),
    "rule_of_one_query": dict(may_attend=random(B, 1, S).astype(bool)),
    "rule_of_one_row_and_query": dict(may_attend=random(1, 1, S).astype(bool)),
    "padding": KEYS,
    "segments": SEGMENTS,
    "causal": dict(is_causal=True),
    "causal_after_a_cache": dict(is_causal=True, first_slot=3),
    "window_of_slots": dict(window=3, first_slot=2),
    "window_of_positions": dict(window=2, **PLACES),
    "window_of_positions_of_one_row": dict(window=2, **{name: x[:1] for name, x in PLACES.items()}),
    "window_of_query_positions": dict(window=3, query_positions=PLACES["query_positions"]),
    "all": KEYS | SEGMENTS | PLACES | dict(may_attend=random(B, T, S) < 1, is_causal=True, first_slot=4, window=3),
}
fields = pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)


def mask_of(fields):
    return Mask(**{name: jnp.array(x) if isinstance(x, np.ndarray) else x for name, x in fields.items()})


def in_loops(
    may_attend=None,
    is_key=None,
    query_segments=None,
    key_segments=None,
    query_positions=None,
    key_positions=None,
    first_slot=0,
    is_causal=False,
    window=0,
):
    """[B, T, S], one query and one key at a time."""
    row = lambda x, b: x[b % len(x)]  # noqa: E731
    picture = np.zeros((B, T, S), bool)
    for b, t, s in np.ndindex(B, T, S):
        query = first_slot + t if query_positions is None else row(query_positions, b)[t]
        key = s if key_positions is None else row(key_positions, b)[s]
        picture[b, t, s] = (
            (may_attend is None or row(row(may_attend, b), t)[s])
            and (is_key is None or is_key[b, s])
            and (query_segments is None or query_segments[b, t] == key_segments[b, s])
            and (not is_causal or s <= first_slot + t)
            and (not window or abs(query - key) < window)
        )
    return picture


@fields
def test_a_part_of_the_picture_is_that_part_wherever_it_begins(fields):
    whole, mask = in_loops(**fields), mask_of(fields)
    assert 0 < whole.mean() < 1
    np.testing.assert_array_equal(np.broadcast_to(mask.block(0, T, 0, S), whole.shape), whole)
    np.testing.assert_array_equal(np.broadcast_to(mask.block(2, 3, 4, 5), (B, 3, 5)), whole[:, 2:5, 4:9])
    for t, s in ((3, 5), (1, S), (T, 2)):
        part = jax.jit(lambda mask, t0, s0, t=t, s=s: jnp.broadcast_to(mask.block(t0, t, s0, s), (B, t, s)))
        for t0, s0 in np.ndindex(T - t + 1, S - s + 1):
            np.testing.assert_array_equal(part(mask, t0, s0), whole[:, t0 : t0 + t, s0 : s0 + s])


@fields
def test_keys_that_pad_a_row_are_hidden_and_the_rest_of_the_picture_stays(fields):
    whole, padded = in_loops(**fields), mask_of(fields).padded(T, S, 2, 3)
    picture = np.broadcast_to(padded.block(0, T + 2, 0, S + 3), (B, T + 2, S + 3))
    np.testing.assert_array_equal(picture[:, :T, :S], whole)
    assert not picture[:, :, S:].any()


def test_a_mask_without_rules_needs_no_picture_until_keys_pad_it():
    assert Mask().block(0, T, 0, S) is None
    assert Mask().padded(T, S, 2, 0).block(0, T + 2, 0, S) is None
    assert pictures(Mask().padded(2, 3, 0, 2).block(0, 2, 0, 5)) == [["1 1 1 . ."]]


# Counting


def test_positions_count_tokens_whatever_the_side_of_the_padding():
    is_token = jnp.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 0, 1]], bool)
    expected = [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2], [0, 0, 1, 1, 2]]
    np.testing.assert_array_equal(token_positions(is_token), expected)


@given(rows_of_bools, st.lists(st.integers(0, 11), min_size=B, max_size=B))
@lightly
def test_counting_goes_on_after_the_tokens_before(is_token, before):
    expected = np.zeros((B, T), int)
    for b in range(B):
        seen = before[b]
        for t in range(T):
            seen += is_token[b, t]
            expected[b, t] = max(seen - 1, 0)
    np.testing.assert_array_equal(token_positions(jnp.array(is_token), jnp.array(before)[:, None]), expected)


def test_every_text_of_a_row_is_counted_from_0():
    segments = jnp.array([[4, 4, 4, 1, 1, 0, 4], [2, 2, 2, 2, 2, 2, 2], [0, 1, 2, 2, 0, 0, 0]])
    expected = [[0, 1, 2, 0, 1, 0, 0], [0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 1, 0, 1, 2]]
    np.testing.assert_array_equal(segment_positions(segments), expected)


# Vectors


@pytest.mark.parametrize("d_model", [1, 10, 11])
def test_sinusoid_is_the_formula_of_the_paper(d_model):
    positions = np.arange(B * T).reshape(B, T)
    expected = np.zeros((B, T, d_model))
    for b, t, number in np.ndindex(B, T, d_model):
        angle = positions[b, t] / 10000 ** (2 * (number // 2) / d_model)
        expected[b, t, number] = math.sin(angle) if number % 2 == 0 else math.cos(angle)
    close(sinusoid(jnp.array(positions), d_model), expected)


def test_every_scheme_tells_positions_apart_in_exactly_one_way():
    for name, scheme in POSITIONS.items():
        ways = (scheme.vectors, scheme.is_learned, scheme.rotate, scheme.bias, scheme.is_relative)
        assert sum(map(bool, ways)) == (name != "none"), name
