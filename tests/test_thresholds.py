"""Thresholds of sampling, hit exactly: logits processors against twins that compute with fractions."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.sampling import MinP, TopP, TypicalP
from transformer_jax.sampling.logits_processors import RULED_OUT, TOLERANCE, apply_processors, keep_first

# Distributions in tenths: all numbers of five tokens that add up to 10, in every order that is not descending
TENTHS = [row for row in itertools.product(range(1, 7), repeat=5) if sum(row) == 10]


def first_needed(probabilities, order, p):
    """Tokens in `order` until their exact sum reaches p."""
    kept, total = [], Fraction(0)
    for token in order:
        if kept and total >= p:
            break
        kept.append(token)
        total += probabilities[token]
    return sorted(kept)


def kept_by(processor, rows):
    logits = jnp.log(jnp.array([[float(x) for x in row] for row in rows], jnp.float32))
    tokens, lengths = jnp.zeros((len(rows), 2), jnp.int32), jnp.ones(len(rows), jnp.int32)
    out, _ = jax.jit(apply_processors)((processor,), logits, tokens, lengths, ((),))
    return [np.flatnonzero(row > RULED_OUT).tolist() for row in np.asarray(out)]


ROWS = [[Fraction(x, 10) for x in row] for row in TENTHS]
by_tenths = pytest.mark.parametrize("p", [Fraction(i, 10) for i in range(1, 11)], ids=str)


@by_tenths
def test_top_p_stops_at_the_token_that_reaches_p_exactly(p):
    expected = [
        first_needed(row, sorted(range(5), key=lambda t: (-row[t], t)), p) if p < 1 else list(range(5)) for row in ROWS
    ]
    assert kept_by(TopP(float(p)), ROWS) == expected


def test_top_p_of_eight_tenths_keeps_a_half_and_three_tenths_alone():
    assert kept_by(TopP(0.8), [[0.5, 0.3, 0.1, 0.1]]) == [[0, 1]]


@by_tenths
def test_min_p_keeps_a_token_that_is_exactly_p_times_as_likely_as_the_first(p):
    assert kept_by(MinP(float(p)), ROWS) == [[t for t in range(5) if row[t] >= p * max(row)] for row in ROWS]


@by_tenths
def test_typical_p_stops_at_the_token_that_reaches_p_exactly(p):
    expected = []
    for row in ROWS:
        surprise = [-math.log(x) for x in row]
        entropy = sum(float(x) * s for x, s in zip(row, surprise, strict=True))
        order = sorted(range(5), key=lambda t: (round(abs(surprise[t] - entropy), 9), t))
        expected.append(first_needed(row, order, p) if p < 1 else list(range(5)))
    assert kept_by(TypicalP(float(p)), ROWS) == expected


def test_typical_p_takes_the_smaller_id_of_two_on_both_sides_of_the_entropy():
    assert kept_by(TypicalP(0.4), [[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]]) == [[0, 1], [0]]


@pytest.mark.parametrize("V", [7, 1000, 50257])
def test_top_p_of_equal_tokens_keeps_the_share_p_of_a_large_vocabulary(V):
    counts = np.array([1, 2, V // 3, V // 2, V - 1])
    logits = jnp.full((len(counts), V), 3.3)
    kept = jax.jit(keep_first)(logits, -logits, jnp.array(counts / V, jnp.float32)[:, None])
    found = np.count_nonzero(np.asarray(kept) > RULED_OUT, axis=1)
    np.testing.assert_allclose(found, counts, atol=math.ceil(V * TOLERANCE) - 1)


def test_a_threshold_of_one_keeps_tokens_of_the_smallest_probability():
    rows = [[0.6, 0.4 - 3e-7, 3e-7, 1e-30]]
    assert kept_by(TopP(1.0), rows) == kept_by(TypicalP(1.0), rows) == [[0, 1, 2, 3]]
