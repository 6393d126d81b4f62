"""Sliced attention for a CPU: the formula of `attention._reference`, a few rows and queries at a time.

The weights [B, N, T, S] are by far the largest array of attention. Here they never exist all at once: rows of the
batch are taken a few at a time, so that a slice fits into the processor's cache; queries in blocks, so that the half
that a causal mask hides is not computed; and the gradient is written out, from the logarithm of each softmax's
denominator, so that no weights are kept for it. The algebra is FlashAttention's (Dao et al. 2022, appendix B), the
slice sizes suit a CPU.

Axes: R = rows x key-value heads of a slice, M = G x queries; all products are [R, M, S] or [R, M, H].
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.nn import masks

QUERY_BLOCK = 128  # queries in a slice; in the gradient, also keys in a block
SLICE_SCORES = 2**19  # maximum number of scores in a slice: 2 MB in float32


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def attend_in_slices(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    may_attend_BTS: jax.Array | None,
    is_causal: bool,
    scale: float,
) -> jax.Array:
    """Compute `attention.attend` in slices, with a boolean mask only; `is_causal` needs T = S."""
    return _forward(q_BTNH, k_BSKH, v_BSKH, may_attend_BTS, is_causal, scale)[0]


def _forward(q, k, v, may_attend, is_causal, scale):
    def one_slice(q, k, v, may_attend):
        rows, T, N, H = q.shape
        S, K = k.shape[1:3]
        q_RGTH = _split_heads(q * scale, K)
        k_RSH = _heads_first(k)
        v_RSH = _heads_first(v)
        outs = []
        logs = []
        for first in range(0, T, QUERY_BLOCK):
            last = min(first + QUERY_BLOCK, T)
            num_keys = last if is_causal else S
            q_RMH = _merge(q_RGTH[:, :, first:last])
            scores_RMS = _product(q_RMH, k_RSH[:, :num_keys], 2, 2)
            may_attend_RMS = _may_attend(may_attend, is_causal, rows, K, N // K, (first, last), (0, num_keys))
            if may_attend_RMS is not None:
                scores_RMS = jnp.where(may_attend_RMS, scores_RMS, jnp.finfo(jnp.float32).min)
            max_score_RM1 = jnp.max(scores_RMS, axis=-1, keepdims=True)
            weights_RMS = jnp.exp(scores_RMS - max_score_RM1)
            if may_attend is not None:  # with a causal mask alone, every query may attend its own key
                weights_RMS = jnp.where(may_attend_RMS, weights_RMS, 0.0)
            sum_RM1 = jnp.sum(weights_RMS, axis=-1, keepdims=True)
            if may_attend is not None:
                sum_RM1 = jnp.where(sum_RM1 == 0.0, 1.0, sum_RM1)  # no key to attend: 0, not 0 / 0
            out_RMH = _product(weights_RMS.astype(v.dtype), v_RSH[:, :num_keys], 2, 1) / sum_RM1
            outs.append(out_RMH.astype(v.dtype).reshape(-1, N // K, last - first, H))
            logs.append((max_score_RM1 + jnp.log(sum_RM1)).reshape(-1, N // K, last - first, 1))
        return _heads_last(jnp.concatenate(outs, axis=2), rows), jnp.concatenate(logs, axis=2)

    out, log = _over_slices(one_slice, may_attend, q, k, v)
    return out, (q, k, v, may_attend, out, log)


def _backward(is_causal, scale, saved, d_out):
    def one_slice(q, k, v, out, log_RGT1, d_out, may_attend):
        rows, T, N, H = q.shape
        S, K = k.shape[1:3]
        G = N // K
        q_RGTH = _split_heads(q * scale, K)
        k_RSH = _heads_first(k)
        v_RSH = _heads_first(v)
        d_out_RGTH = _split_heads(d_out, K)
        # The softmax's gradient is weights * (d_weights - dot), where dot equals sum_S(weights * d_weights), too.
        dot_RGT1 = _split_heads(jnp.sum(out.astype(jnp.float32) * d_out, axis=-1, keepdims=True), K)
        dq_RGTH = None
        dks = []
        dvs = []
        for first in range(0, S, QUERY_BLOCK):
            last = min(first + QUERY_BLOCK, S)
            start = first if is_causal else 0  # the first query that may attend this block of keys
            q_RMH = _merge(q_RGTH[:, :, start:])
            d_out_RMH = _merge(d_out_RGTH[:, :, start:])
            k_block = k_RSH[:, first:last]
            v_block = v_RSH[:, first:last]
            log_RM1 = _merge(log_RGT1[:, :, start:])
            dot_RM1 = _merge(dot_RGT1[:, :, start:])
            weights_RMS = jnp.exp(_product(q_RMH, k_block, 2, 2) - log_RM1)
            may_attend_RMS = _may_attend(may_attend, is_causal, rows, K, G, (start, T), (first, last))
            if may_attend_RMS is not None:
                weights_RMS = jnp.where(may_attend_RMS, weights_RMS, 0.0)
            d_scores_RMS = weights_RMS * (_product(d_out_RMH, v_block, 2, 2) - dot_RM1)
            d_scores_RMS = d_scores_RMS.astype(q.dtype)
            dvs.append(_product(weights_RMS.astype(v.dtype), d_out_RMH, 1, 1))
            dks.append(_product(d_scores_RMS, q_RMH, 1, 1))
            dq = _product(d_scores_RMS, k_block, 2, 1).reshape(-1, G, T - start, H)
            dq_RGTH = dq if first == 0 else dq_RGTH.at[:, :, start:].add(dq)  # block 0 belongs to all queries
        dk = jnp.concatenate(dks, axis=1)[:, None]
        dv = jnp.concatenate(dvs, axis=1)[:, None]
        return (
            _heads_last(dq_RGTH * scale, rows).astype(q.dtype),
            _heads_last(dk, rows).astype(k.dtype),
            _heads_last(dv, rows).astype(v.dtype),
        )

    q, k, v, may_attend, out, log = saved
    return *_over_slices(one_slice, may_attend, q, k, v, out, log, d_out), None


attend_in_slices.defvjp(_forward, _backward)


def _product(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """Batched matrix product that sums over one axis of each operand: [R, ., .] x [R, ., .] -> [R, ., .] float32."""
    return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((0,), (0,))), preferred_element_type=jnp.float32)


def _split_heads(x: jax.Array, K: int) -> jax.Array:  # [rows, T, N, H] -> [R, G, T, H]
    rows, T, N, H = x.shape
    return x.transpose(0, 2, 1, 3).reshape(rows * K, N // K, T, H)


def _heads_first(x: jax.Array) -> jax.Array:  # [rows, S, K, H] -> [R, S, H]
    return _split_heads(x, x.shape[2])[:, 0]


def _heads_last(x: jax.Array, rows: int) -> jax.Array:  # [R, G, T, H] -> [rows, T, N, H]
    return x.reshape(rows, -1, *x.shape[2:]).transpose(0, 2, 1, 3)


def _merge(x: jax.Array) -> jax.Array:  # [R, G, t, H] -> [R, M, H]
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _may_attend(may_attend, is_causal, rows, K, G, queries, keys) -> jax.Array | None:
    """Slice of the mask for a block of queries and a block of keys, [R or 1, M, s]; None: all True.

    Args:
      queries, keys: (first, end) of each block.
    """
    may_attend_BTS = None
    if is_causal:
        may_attend_BTS = masks.causal(queries[1] - queries[0], keys[1] - keys[0], queries[0] - keys[0])
    if may_attend is not None:
        queries = queries if may_attend.shape[1] > 1 else (0, 1)
        block = may_attend[:, queries[0] : queries[1], keys[0] : keys[1]]
        may_attend_BTS = block if may_attend_BTS is None else may_attend_BTS & block
    if may_attend_BTS is None:
        return None
    b, t, s = may_attend_BTS.shape
    heads = K if b == rows > 1 else 1
    may_attend_BKGTS = jnp.broadcast_to(may_attend_BTS[:, None, None], (b, heads, G if t > 1 else 1, t, s))
    return may_attend_BKGTS.reshape(b * heads, -1, s)


def _over_slices(function: Callable, may_attend: jax.Array | None, *arrays: jax.Array) -> Any:
    """Call `function(*arrays, may_attend)` with a few rows at a time and concatenate the results."""
    B, T, N, _ = arrays[0].shape
    scores_per_row = N * min(T, QUERY_BLOCK) * arrays[1].shape[1]
    rows = max(n for n in range(1, B + 1) if B % n == 0 and (n == 1 or n * scores_per_row <= SLICE_SCORES))
    if rows == B:
        return function(*arrays, may_attend)
    sliced = list(arrays)
    is_mask_per_row = may_attend is not None and may_attend.shape[0] > 1
    if may_attend is not None and is_mask_per_row:
        sliced.append(may_attend)
    # The leading axis is rows or, for the logarithms [R, ...], rows x heads.
    slices = [x.reshape(B // rows, -1, *x.shape[1:]) for x in sliced]
    results = jax.lax.map(lambda part: function(*part) if is_mask_per_row else function(*part, may_attend), slices)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)
