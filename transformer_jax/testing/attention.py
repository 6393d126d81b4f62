"""Laws of attention, position schemes and dropout, for functions of queries, keys and values."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.testing.laws import close, differs, equal, finite, normal, value_and_gradients

B, T, S, N, K, H = 3, 5, 7, 6, 2, 8  # pairwise distinct, so that no two axes can be mistaken for each other
NUM_KEYS = 64  # dropout keys whose results are averaged


def check_attention(fn: Callable, *, is_grouped: bool = True, is_softmax: bool = True) -> None:
    """Check the laws of softmax attention.

    Args:
      fn: (q [B, T, N, H], k [B, S, K, H], v [B, S, K, H], may_attend [B, T, S] bool) -> [B, T, N, H].
      is_grouped: fn takes fewer key-value heads than query heads; query head n uses key-value head n K // N.
      is_softmax: the weights are softmax(q k^T / sqrt(H)); False for another kind of attention.
    """
    heads = K if is_grouped else N
    q, k, v = normal(0, B, T, N, H), normal(1, B, S, heads, H), normal(2, B, S, heads, H)
    random = np.random.default_rng(3)
    may_attend = random.random((B, T, S)) < 0.6
    may_attend[:, :, 2] = True
    out = fn(q, k, v, jnp.asarray(may_attend))
    if is_softmax:
        close("softmax(q k^T / sqrt(H)) v", out, _formula(q, k, v, may_attend))

    close("weights sum to 1", fn(q, k, jnp.ones_like(v), may_attend), np.ones(out.shape))
    for s in range(S):  # a key that a query may not attend has weight 0, so its value may be anything
        other = fn(q, k.at[:, s].add(3.0), v.at[:, s].set(1e4), may_attend)
        equal(f"masked weights are 0 (key {s})", other, out, ~may_attend[:, :, s, None, None])
    gradient = np.asarray(jax.grad(lambda v: jnp.sum(fn(q, k, v, may_attend)[:, 1]))(v))
    equal("masked values get no gradient", gradient, np.zeros(gradient.shape), ~may_attend[:, 1, :, None, None])

    order = np.array([3, 0, 6, 2, 5, 1, 4])
    close("the order of the keys does not matter", fn(q, k[:, order], v[:, order], may_attend[:, :, order]), out)
    order = np.array([4, 2, 0, 3, 1])
    close("queries are independent", fn(q[:, order], k, v, may_attend[:, order]), out[:, order])
    for b in range(B):
        alone = fn(q[b : b + 1], k[b : b + 1], v[b : b + 1], may_attend[b : b + 1])
        close(f"a row alone equals the row in a batch (row {b})", alone, out[b : b + 1])
    _check_heads(fn, q, k, v, may_attend, out)

    sparse = may_attend.copy()
    sparse[0, 3] = False
    sparse[1] = False
    has_no_keys = ~np.any(sparse, axis=-1, keepdims=True)[..., None]
    out, gradients = value_and_gradients(lambda q, k, v: fn(q, k, v, jnp.asarray(sparse)), (q, k, v))
    equal("a query without keys gives 0", out, np.zeros(out.shape), has_no_keys)
    finite("a query without keys has finite gradients", gradients)
    equal("a query without keys has gradient 0", gradients[0], np.zeros(q.shape), has_no_keys)
    finite("large scores stay finite", value_and_gradients(lambda q, k, v: fn(q, k, v, may_attend), (1e4 * q, k, v)))


def _check_heads(fn, q, k, v, may_attend, out):
    heads = k.shape[2]
    group = N // heads
    if group > 1:
        repeated = fn(q, jnp.repeat(k, group, axis=2), jnp.repeat(v, group, axis=2), may_attend)
        close("grouped heads equal repeated heads", repeated, out)
    order = np.arange(heads)[::-1]
    q_order = np.concatenate([np.arange(h * group, (h + 1) * group) for h in order])
    close(
        "the order of the heads does not matter",
        fn(q[:, :, q_order], k[:, :, order], v[:, :, order], may_attend),
        out[:, :, q_order],
    )
    other = fn(q, k, v.at[:, :, 0].add(1.0), may_attend)
    equal("a head uses its own values only", other, out, (np.arange(N) >= group)[:, None])


def _formula(q, k, v, may_attend):
    """Attention by the formula, one row, query and head at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(q.shape[:3]):
        keys = np.flatnonzero(may_attend[b, t])
        head = n * k.shape[2] // q.shape[2]
        scores = k[b, keys, head] @ q[b, t, n] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights / weights.sum() @ v[b, keys, head]
    return out


def check_positions(fn: Callable, *, is_shift_invariant: bool = True, reach: int = 1) -> None:
    """Check the laws of position schemes that act on scores: rotary, ALiBi, T5's, Shaw's.

    Args:
      fn: (q [B, T, N, H], k [B, S, N, H], query positions [B, T], key positions [B, S]) -> scores [B, N, T, S].
      is_shift_invariant: scores depend on differences of positions only.
      reach: distance by which a key must move for its score to change.
    """
    q, k = normal(0, B, T, N, H), normal(1, B, S, N, H)
    random = np.random.default_rng(2)
    q_positions = random.integers(0, 40, (B, T))
    k_positions = random.integers(0, 40, (B, S))
    scores = fn(q, k, q_positions, k_positions)
    if is_shift_invariant:
        for shift in (1, 13, 101):
            shifted = fn(q, k, q_positions + shift, k_positions + shift)
            close(f"only differences of positions count (all shifted by {shift})", shifted, scores, tolerance=1e-4)
    order = np.array([3, 0, 6, 2, 5, 1, 4])
    permuted = fn(q, k[:, order], q_positions, k_positions[:, order])
    close("a permutation of the keys permutes the scores", permuted, np.asarray(scores)[..., order])
    moved = k_positions.copy()
    moved[:, 2] = q_positions[:, 1] - reach  # near enough to change the score in every scheme
    nearer = fn(q, k, q_positions, moved)
    moved[:, 2] = q_positions[:, 1]
    differs("a key's position counts", fn(q, k, q_positions, moved)[:, :, 1, 2], nearer[:, :, 1, 2])
    equal("a key's position changes its own scores only", nearer, scores, np.arange(S) != 2)
    finite("scores at large distances are finite", fn(q, k, q_positions + 10**6, k_positions))


def check_dropout(fn: Callable) -> None:
    """Check the laws of dropout: a function of its key, unbiased, and off without a key.

    Args:
      fn: key -> array, linear in the numbers that are dropped; None for the key: no dropout.
    """
    once, again, other = (np.asarray(fn(jax.random.key(seed))) for seed in (1, 1, 2))
    equal("the same key drops the same", again, once)
    differs("another key drops something else", other[None], once[None])
    plain = np.asarray(fn(None), np.float64)
    differs("dropout changes something", plain[None], once[None])
    # Projected on the result without dropout, so that one number has the noise of all elements averaged out.
    samples = [np.vdot(plain, np.asarray(fn(jax.random.key(seed)), np.float64)) for seed in range(NUM_KEYS)]
    ratios = np.array(samples) / np.vdot(plain, plain)
    standard_error = ratios.std(ddof=1) / np.sqrt(NUM_KEYS)
    close("the mean over keys is the result without a key", ratios.mean(), 1.0, tolerance=6.0 * standard_error)
