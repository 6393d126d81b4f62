"""Positions in the scores: T5's buckets, ALiBi's slopes, Shaw's vectors and rotary angles, as in the papers."""

import fractions
import math

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import close

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.nn.attention import attend
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.positions import (
    PAIR_LAYOUTS,
    POSITIONS,
    Alibi,
    Relative,
    T5Bias,
    alibi_slopes,
    t5_bucket,
    token_positions,
)

B, T, S, N, K, H = 2, 7, 11, 6, 3, 5
WIDTH = 10  # of a rotary head


def normal(*shape):
    return jnp.array(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


# T5


def bucket_in_words(distance, num_buckets, max_distance, is_causal):
    """Raffel et al. 2020, section 2.1, and their program, in integers: no logarithm, so nothing is rounded."""
    bucket = 0
    if is_causal:
        distance = min(distance, 0)  # what is not seen counts as the query itself
    else:
        num_buckets //= 2
        if distance > 0:
            bucket = num_buckets
    n, near = abs(distance), num_buckets // 2
    if n < near:
        return bucket + n
    wide = num_buckets - near  # buckets from `near` to `max_distance`, each wider than the last by the same ratio
    ratio, most = fractions.Fraction(n, near), fractions.Fraction(max_distance, near)
    step = sum(ratio**wide >= most**i for i in range(1, wide))
    return bucket + near + step


@pytest.mark.parametrize("num_buckets, max_distance", [(32, 128), (8, 20)])
@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "both_ways"])
def test_t5_buckets_are_those_of_the_paper(is_causal, num_buckets, max_distance):
    distances = np.arange(-300, 301)
    actual = np.asarray(t5_bucket(jnp.array(distances), num_buckets, max_distance, is_causal))
    expected = [bucket_in_words(int(d), num_buckets, max_distance, is_causal) for d in distances]
    np.testing.assert_array_equal(actual, expected)
    assert set(actual) == set(range(num_buckets)) - ({num_buckets // 2} if not is_causal else set())


def test_near_distances_have_a_bucket_each_and_far_ones_share_the_last():
    causal = np.asarray(t5_bucket(-jnp.arange(300), 32, 128, is_causal=True))
    np.testing.assert_array_equal(causal[:17], range(17))
    assert np.all(causal[113:] == 31) and causal[112] == 30 and np.all(np.diff(causal) >= 0)
    assert np.all(np.asarray(t5_bucket(jnp.arange(9), 32, 128, is_causal=True)) == 0)
    before, after = (np.asarray(t5_bucket(way * jnp.arange(1, 300), 32, 128, is_causal=False)) for way in (-1, 1))
    np.testing.assert_array_equal(before[:8], range(1, 9))
    np.testing.assert_array_equal(after, before + 16)
    assert np.all(before[127:] == 15)


def config(positions, **kwargs):
    return TransformerConfig(positions=positions, num_heads=N, head_dim=H, **kwargs)


def t5_bias(table, is_causal):
    settings = config("t5", relative_buckets=table.shape[0], relative_max_distance=20)
    return T5Bias(settings).apply({"params": {"embedding": table}}, is_causal)


@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "both_ways"])
def test_the_t5_bias_of_a_score_is_the_number_of_its_bucket_and_head(is_causal):
    table, positions = normal(8, N), np.array([[0, 0, 1, 2, 2, 3, 30], [5, 6, 7, 8, 9, 10, 11]])
    mask = Mask(query_positions=jnp.array(positions), key_positions=jnp.array(3 * positions))
    actual = np.asarray(t5_bias(table, is_causal).block(mask, 0, T, 0, T))
    for b, n, t, s in np.ndindex(B, N, T, T):
        distance = int(3 * positions[b, s] - positions[b, t])
        assert actual[b, n, t, s] == table[bucket_in_words(distance, 8, 20, is_causal), n]


# ALiBi


def test_alibi_slopes_are_powers_of_2_and_those_between_fill_up():
    assert alibi_slopes(8) == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    assert alibi_slopes(1) == [1 / 256]
    sixteen = [2 ** (-i / 2) for i in range(1, 17)]
    close(alibi_slopes(16), sixteen)
    close(alibi_slopes(12), [2.0**-i for i in range(1, 9)] + sixteen[0:8:2])
    close(alibi_slopes(6), [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8])
    for num_heads in range(1, 40):
        assert len(set(alibi_slopes(num_heads))) == num_heads


def test_alibi_takes_off_the_slope_for_each_token_between():
    bias = Alibi(TransformerConfig(positions="alibi", num_heads=2)).apply({}, True)
    assert alibi_slopes(2) == [1 / 16, 1 / 256]
    expected = -np.array([[3, 2, 1, 0, 1], [4, 3, 2, 1, 0]])
    actual = bias.block(Mask(first_slot=3, is_causal=True), 0, 2, 0, 5)
    np.testing.assert_array_equal(actual, [[expected / 16, expected / 256]])


def test_alibi_and_t5_depend_on_differences_of_positions_only():
    is_token = jnp.array([[0, 1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 0, 0, 1]], bool)
    positions = token_positions(is_token)
    for is_causal in (True, False):
        for bias in (Alibi(config("alibi")).apply({}, is_causal), t5_bias(normal(8, N), is_causal)):
            at_0, later = (
                bias.block(Mask(query_positions=positions + shift, key_positions=positions + shift), 0, T, 0, T)
                for shift in (0, 41)
            )
            np.testing.assert_array_equal(at_0, later)
            moved = bias.block(Mask(query_positions=positions + 1, key_positions=positions), 0, T, 0, T)
            assert jnp.any(moved != at_0)


def test_any_block_of_a_bias_is_that_block_of_the_whole():
    mask = Mask(first_slot=4)
    for bias in (Alibi(config("alibi")).apply({}, False), t5_bias(normal(8, N), False)):
        whole = np.asarray(bias.block(mask, 0, T, 0, S))
        np.testing.assert_array_equal(bias.block(mask, 2, 3, 5, 4), whole[:, :, 2:5, 5:9])
        np.testing.assert_array_equal(bias.padded(2, 3).block(mask, 0, T + 2, 0, S + 3)[:, :, :T, :S], whole)


# Shaw


def shaw_in_loops(q, k, v, keys, values, query_positions, key_positions, may_attend):
    """Shaw et al. 2018, equations 3 and 4 with a_ij = w[clip(j - i)] of section 3.2, in float64."""
    q, k, v, keys, values = (np.asarray(x, np.float64) for x in (q, k, v, keys, values))
    most, out = len(keys) // 2, np.zeros(q.shape)
    for b, t, n in np.ndindex(q.shape[:3]):
        scores, vectors = [], []
        for s in range(k.shape[1]):
            if may_attend[b, t, s]:
                w = max(-most, min(most, int(key_positions[b, s] - query_positions[b, t]))) + most
                scores.append(q[b, t, n] @ (k[b, s, n // (N // K)] + keys[w]) / np.sqrt(H))
                vectors.append(v[b, s, n // (N // K)] + values[w])
        weights = np.exp(scores - np.max(scores, initial=-np.inf))
        for weight, vector in zip(weights / weights.sum(), vectors, strict=True):
            out[b, t, n] += weight * vector
    return out


@pytest.mark.parametrize("most", [2, 40], ids=["clipped", "every_distance_its_own"])
def test_shaw_attention_is_the_formula_of_the_paper(most):
    q, k, v = normal(B, T, N, H), normal(B, S, K, H), normal(B, S, K, H) ** 2
    keys, values = normal(2 * most + 1, H), 2 * normal(2 * most + 1, H) ** 2
    queries, others = np.array([[0, 1, 1, 2, 9, 12, 13]] * B), np.arange(S)[None] + np.array([[0], [3]])
    rule = np.random.default_rng(3).random((B, T, S)) < 0.7
    mask = Mask(jnp.array(rule), query_positions=jnp.array(queries), key_positions=jnp.array(others))
    actual = attend(q, k, v, mask, relative=Relative(keys, values))
    close(actual, shaw_in_loops(q, k, v, keys, values, queries, others, rule))


def test_shaw_attention_without_positions_counts_slots_from_the_first_of_the_queries():
    q, k, v, keys, values = normal(B, T, N, H), normal(B, S, K, H), normal(B, S, K, H), normal(5, H), normal(5, H)
    slots = np.broadcast_to(np.arange(S), (B, S))
    causal = np.broadcast_to(slots[:, None] <= slots[:, 3 : 3 + T, None], (B, T, S))
    actual = attend(q, k, v, Mask(first_slot=3, is_causal=True), relative=Relative(keys, values))
    close(actual, shaw_in_loops(q, k, v, keys, values, slots[:, 3 : 3 + T], slots, causal))


# Rotary


def heads(seed):
    return jnp.array(np.random.default_rng(seed).normal(size=(B, T, N, WIDTH)), jnp.float32)


def positions_of(seed):
    return jnp.array(np.random.default_rng(seed).integers(0, 31, (B, T)))


def turn(x, positions, **kwargs):
    """What the scheme "rotary" does, for a configuration."""
    config = TransformerConfig(positions="rotary", **kwargs)
    return POSITIONS["rotary"].rotate(x, positions, config, config.layer(0))


def turn_by(x, positions, frequencies):
    """Pairs that are half a head apart, turned by position * frequency, in float64."""
    x64, half = np.asarray(x, np.float64), WIDTH // 2
    turned = np.zeros(x.shape)
    for i, frequency in enumerate(frequencies):
        angle = np.asarray(positions)[:, :, None] * frequency
        first, second = x64[..., i], x64[..., i + half]
        turned[..., i] = first * np.cos(angle) - second * np.sin(angle)
        turned[..., i + half] = first * np.sin(angle) + second * np.cos(angle)
    return turned


def test_rotary_turns_pairs_that_are_half_a_head_apart_by_the_angle_of_the_paper():
    x, positions, theta = heads(0), positions_of(1), 100.0
    expected = turn_by(x, positions, [theta ** (-2 * i / WIDTH) for i in range(WIDTH // 2)])
    close(turn(x, positions, rope_theta=theta), expected)


def test_the_layouts_turn_the_same_pairs_which_lie_elsewhere():
    x, positions = heads(0), positions_of(1)
    beside = np.array([place for i in range(WIDTH // 2) for place in (i, i + WIDTH // 2)])  # halves -> pairs
    halves, pairs = turn(x, positions), turn(x[..., beside], positions, rope_layout="pairs")
    close(pairs, halves[..., beside])
    assert jnp.abs(turn(x, positions, rope_layout="pairs") - halves).max() > 0.1


layouts = pytest.mark.parametrize("layout", PAIR_LAYOUTS)


@layouts
def test_turning_keeps_norms(layout):
    turned = turn(heads(2), positions_of(3), rope_layout=layout)
    close(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(heads(2), axis=-1))


@layouts
def test_turning_by_position_0_is_the_identity(layout):
    turned = turn(heads(4), jnp.zeros((B, T), int), rope_layout=layout)
    np.testing.assert_array_equal(turned, heads(4))


@layouts
@pytest.mark.parametrize("scaling", ["none", "linear", "llama3", "yarn"])  # those that do not depend on the length
def test_products_of_turned_queries_and_keys_depend_on_differences_of_positions_only(layout, scaling):
    def scores(shift):
        kwargs = dict(rope_layout=layout, rope_scaling=scaling, rope_factor=3.0, rope_original_max_len=53)
        q, k = (turn(heads(seed), positions_of(7) + shift, **kwargs) for seed in (5, 6))
        return jnp.einsum("BTNH,BSNH->BNTS", q, k)

    for shift in (1, 29):
        close(scores(shift), scores(0))


def test_rotary_products_do_depend_on_the_differences():
    q, k = (turn(heads(seed), positions_of(7)) for seed in (5, 6))
    moved = turn(heads(6), positions_of(7) + 1)
    assert jnp.abs(jnp.sum(q * moved, -1) - jnp.sum(q * k, -1)).max() > 0.1


def test_rotary_angles_are_exact_in_bfloat16_and_at_long_positions():
    x, positions = heads(10), jnp.broadcast_to(1009 + jnp.arange(T), (B, T))
    turned = turn(x.astype(jnp.bfloat16), positions)
    assert turned.dtype == jnp.bfloat16
    np.testing.assert_allclose(turned.astype(jnp.float32), turn(x, positions), atol=0.05)


def test_linear_scaling_divides_the_positions():
    x, positions = heads(11), positions_of(12)
    scaled = turn(x, positions, rope_scaling="linear", rope_factor=4.0)
    close(scaled, turn(x, positions / 4.0))
    assert jnp.abs(scaled - turn(x, positions)).max() > 0.1


def test_llama3_scaling_stretches_long_waves_keeps_short_ones_and_mixes_between():
    theta, factor, low, high, original = 100.0, 8.0, 1.0, 4.0, 64
    low_freq_wavelen, high_freq_wavelen = original / low, original / high
    frequencies, kinds = [], set()
    for i in range(WIDTH // 2):
        frequency = theta ** (-2 * i / WIDTH)
        wavelen = 2 * math.pi / frequency
        if wavelen < high_freq_wavelen:
            kinds.add("kept")
        elif wavelen > low_freq_wavelen:
            kinds.add("stretched")
            frequency /= factor
        else:
            kinds.add("mixed")
            smooth = (original / wavelen - low) / (high - low)
            frequency = (1 - smooth) * frequency / factor + smooth * frequency
        frequencies.append(frequency)
    assert kinds == {"kept", "mixed", "stretched"}
    scaled = turn(
        heads(13),
        positions_of(14),
        rope_theta=theta,
        rope_scaling="llama3",
        rope_factor=factor,
        rope_low_freq_factor=low,
        rope_high_freq_factor=high,
        rope_original_max_len=original,
    )
    close(scaled, turn_by(heads(13), positions_of(14), frequencies))


LONGROPE = {"rope_scaling": "longrope", "rope_attention_factor": 1.0, "head_dim": WIDTH}
LONGROPE |= {"rope_short_factors": "1,1,1,1,1", "rope_long_factors": "1,2,3,4,5"}


@pytest.mark.parametrize("changes", [{"rope_scaling": "dynamic"}, LONGROPE])
def test_rotations_that_depend_on_the_length_are_those_of_each_row_alone(changes):
    x = heads(15)
    positions = jnp.array([range(T), range(40, 40 + T)])[jnp.array([0, 1] * B)[:B]]
    settings = changes | {"rope_original_max_len": 43, "rope_factor": 3.0}
    together = turn(x, positions, **settings)
    for row in range(B):
        close(together[row], turn(x[row : row + 1], positions[row : row + 1], **settings)[0])
    assert jnp.abs(together[1] - turn(x, positions)[1]).max() > 0.1
    close(turn(x[:1], positions[:1], **settings), turn(x[:1], positions[:1]))


def test_an_unknown_scaling_or_layout_is_refused_with_the_list_of_known_ones():
    with pytest.raises(UserError, match="model.rope_scaling='twice': unknown. Choose one of: none, linear, dynamic"):
        turn(heads(0), positions_of(1), rope_scaling="twice")
    with pytest.raises(UserError, match="model.rope_layout='thirds': unknown. Choose one of: halves, pairs"):
        turn(heads(0), positions_of(1), rope_layout="thirds")
