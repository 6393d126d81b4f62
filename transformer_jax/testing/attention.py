"""Laws of attention itself, for functions of queries, keys and values."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.testing.laws import close, differs, equal, finite, normal, value_and_gradients

B, T, S, N, K, H = 3, 5, 7, 6, 2, 8  # pairwise distinct, so that no two axes can be mistaken for each other


def check_attention(fn: Callable, *, is_grouped: bool = True, is_softmax: bool = True) -> None:
    """The laws of softmax attention.

    Args:
      fn: (q [B, T, N, H], k [B, S, K, H], v [B, S, K, H], may_attend [B, T, S] bool) -> [B, T, N, H].
      is_grouped: fn takes fewer key-value heads than query heads; query heads n K/N rounded down share one.
      is_softmax: the weights are softmax(q k^T / sqrt(H)), and not those of another kind of attention.
    """
    heads = K if is_grouped else N
    q, k, v = normal(0, B, T, N, H), normal(1, B, S, heads, H), normal(2, B, S, heads, H)
    random = np.random.default_rng(3)
    may = random.random((B, T, S)) < 0.6
    may[:, :, 2] = True
    out = fn(q, k, v, jnp.asarray(may))
    if is_softmax:
        close("softmax(q k^T / sqrt(H)) v", out, _formula(q, k, v, may))

    close("weights sum to 1", fn(q, k, jnp.ones_like(v), may), np.ones(out.shape))
    for s in range(S):  # a key that a query may not attend has weight 0, so its value may be anything
        other = fn(q, k.at[:, s].add(3.0), v.at[:, s].set(1e4), may)
        equal(f"masked weights are 0 (key {s})", other, out, ~may[:, :, s, None, None])
    seen = np.asarray(jax.grad(lambda v: jnp.sum(fn(q, k, v, may)[:, 1]))(v))
    equal("masked values get no gradient", seen, np.zeros(seen.shape), ~may[:, 1, :, None, None])

    order = np.array([3, 0, 6, 2, 5, 1, 4])
    close("the order of the keys does not matter", fn(q, k[:, order], v[:, order], may[:, :, order]), out)
    order = np.array([4, 2, 0, 3, 1])
    close("each query goes by itself", fn(q[:, order], k, v, may[:, order]), out[:, order])
    for b in range(B):
        alone = fn(q[b : b + 1], k[b : b + 1], v[b : b + 1], may[b : b + 1])
        close(f"a row alone is as in a batch (row {b})", alone, out[b : b + 1])
    _check_heads(fn, q, k, v, may, out)

    none = may.copy()
    none[0, 3] = False
    none[1] = False
    out, gradients = value_and_gradients(lambda q, k, v: fn(q, k, v, jnp.asarray(none)), (q, k, v))
    equal("nothing to attend gives 0", out, np.zeros(out.shape), ~none.any(-1)[:, :, None, None])
    finite("nothing to attend has finite gradients", gradients)
    equal("nothing to attend has gradient 0", gradients[0], np.zeros(q.shape), ~none.any(-1)[:, :, None, None])
    finite("large scores stay finite", value_and_gradients(lambda q, k, v: fn(q, k, v, may), (1e4 * q, k, v)))


def _check_heads(fn, q, k, v, may, out):
    heads = k.shape[2]
    group = N // heads
    if group > 1:
        tied = fn(q, jnp.repeat(k, group, axis=2), jnp.repeat(v, group, axis=2), may)
        close("grouped heads are tied heads", tied, out)
    order = np.arange(heads)[::-1]
    q_order = np.concatenate([np.arange(h * group, (h + 1) * group) for h in order])
    close(
        "the order of the heads does not matter",
        fn(q[:, :, q_order], k[:, :, order], v[:, :, order], may),
        out[:, :, q_order],
    )
    other = fn(q, k, v.at[:, :, 0].add(1.0), may)
    equal("a head reads its own values only", other, out, (np.arange(N) >= group)[:, None])


def _formula(q, k, v, may):
    """One row, query and head at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(q.shape[:3]):
        keys, head = np.flatnonzero(may[b, t]), n * k.shape[2] // q.shape[2]
        scores = k[b, keys, head] @ q[b, t, n] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights / weights.sum() @ v[b, keys, head]
    return out


def check_positions(fn: Callable, *, is_shift_invariant: bool = True, reach: int = 1) -> None:
    """The laws of positions that act on scores: rotary, ALiBi, T5's, Shaw's.

    Args:
      fn: (q [B, T, N, H], k [B, S, N, H], query positions [B, T], key positions [B, S]) -> scores [B, N, T, S].
      is_shift_invariant: only differences of positions count.
      reach: how far a key has to move for its score to change.
    """
    q, k = normal(0, B, T, N, H), normal(1, B, S, N, H)
    random = np.random.default_rng(2)
    of_q, of_k = random.integers(0, 40, (B, T)), random.integers(0, 40, (B, S))
    scores = fn(q, k, of_q, of_k)
    if is_shift_invariant:
        for shift in (1, 13, 101):
            shifted = fn(q, k, of_q + shift, of_k + shift)
            close(f"only differences of positions count (all moved by {shift})", shifted, scores, tolerance=1e-4)
    order = np.array([3, 0, 6, 2, 5, 1, 4])
    close("scores go with keys", fn(q, k[:, order], of_q, of_k[:, order]), np.asarray(scores)[..., order])
    moved = of_k.copy()
    moved[:, 2] = of_q[:, 1] - reach  # near enough for every scheme to notice
    nearer = fn(q, k, of_q, moved)
    moved[:, 2] = of_q[:, 1]
    differs("a key's position counts", fn(q, k, of_q, moved)[:, :, 1, 2], nearer[:, :, 1, 2])
    equal("a key's position changes its own scores only", nearer, scores, np.arange(S) != 2)
    finite("scores far out are finite", fn(q, k, of_q + 10**6, of_k))


def check_dropout(fn: Callable) -> None:
    """Dropout is a function of its key: the same key the same bits, another key others.

    Args:
      fn: key -> array; None for the key: no dropout.
    """
    once, again, other = (fn(jax.random.key(seed)) for seed in (1, 1, 2))
    equal("the same key drops the same", again, once)
    differs("another key drops something else", other[None], once[None])
    plain = fn(None)
    differs("dropout changes something", plain[None], once[None])
    equal("no key, no dropout", fn(None), plain)
