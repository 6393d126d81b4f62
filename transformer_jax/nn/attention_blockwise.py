"""Attention in blocks: memory grows with T, not with T * S, for values and for gradients.

A softmax can be taken block by block of keys, with the largest score so far and the sum so far (Milakov & Gimelshein
2018). The gradient computes each block's weights again from the logarithm of that sum (Dao et al. 2022, appendix B).
Masks and biases are drawn block by block, too, and what a bias is made of gets its gradient.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.nn.masks import Mask, cut

BLOCK = 512  # queries, and keys, of a block


def attend_in_blocks(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask, bias: Any, scale: float, softcap: float
) -> jax.Array:
    """As `attention.attend`, without dropout and relative vectors."""
    B, T, N, _ = q_BTNH.shape
    S, K, H = v_BSKH.shape[1:]
    block_T, block_S = min(BLOCK, T), min(BLOCK, S)
    more_T, more_S = -T % block_T, -S % block_S
    if more_T or more_S:
        mask = mask.padded(T, S, more_T, more_S)
        bias = None if bias is None else bias.padded(more_T, more_S)
        q_BTNH = jnp.pad(q_BTNH, ((0, 0), (0, more_T), (0, 0), (0, 0)))
        k_BSKH, v_BSKH = (jnp.pad(x, ((0, 0), (0, more_S), (0, 0), (0, 0))) for x in (k_BSKH, v_BSKH))
    q_BNTH, k_BKSH, v_BKSH = (x.swapaxes(1, 2) for x in (q_BTNH, k_BSKH, v_BSKH))
    blocks = (block_T, block_S)
    out = _attend((blocks, scale, softcap), q_BNTH, k_BKSH, v_BKSH, bias, mask)
    return out.swapaxes(1, 2)[:, :T]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(how, q_BNTH, k_BKSH, v_BKSH, bias, mask):
    return _forward(how, q_BNTH, k_BKSH, v_BKSH, bias, mask)[0]


def _forward(how, q_BNTH, k_BKSH, v_BKSH, bias, mask):
    (block_T, block_S), scale, softcap = how
    B, N, T, H = q_BNTH.shape
    num_blocks = k_BKSH.shape[2] // block_S

    def queries(i):
        first_T = i * block_T
        q = cut(q_BNTH, 2, first_T, block_T)

        def keys(j, carry):
            largest, total, out = carry
            first_S = j * block_S
            scores = _scores(q, cut(k_BKSH, 2, first_S, block_S), bias, mask, first_T, first_S, scale, softcap)
            may = _may_attend(mask, first_T, block_T, first_S, block_S)
            scores = jnp.where(may, scores, -jnp.inf)
            new_largest = jnp.maximum(largest, jnp.max(scores, axis=-1, keepdims=True))
            anchor = jnp.where(new_largest == -jnp.inf, 0.0, new_largest)  # nothing to attend so far
            weights, shrink = jnp.exp(scores - anchor), jnp.exp(largest - anchor)
            total = total * shrink + jnp.sum(weights, axis=-1, keepdims=True)
            out = out * shrink + _weighted(weights.astype(v_BKSH.dtype), cut(v_BKSH, 2, first_S, block_S))
            return new_largest, total, out

        zero = jnp.zeros((B, N, block_T, 1), jnp.float32)
        carry = (zero - jnp.inf, zero, jnp.zeros((B, N, block_T, H), jnp.float32))
        last = _last_block(mask, first_T + block_T, block_S, num_blocks)
        largest, total, out = jax.lax.fori_loop(0, last, keys, carry)
        is_empty = total == 0.0
        log = jnp.where(is_empty, jnp.inf, largest + jnp.log(jnp.where(is_empty, 1.0, total)))
        return (out / jnp.where(is_empty, 1.0, total)).astype(v_BKSH.dtype), log

    out, log = jax.lax.map(queries, jnp.arange(T // block_T))  # [blocks, B, N, block_T, ...]
    out, log = (jnp.moveaxis(x, 0, 2).reshape(B, N, T, -1) for x in (out, log))
    return out, (q_BNTH, k_BKSH, v_BKSH, bias, mask, out, log)


def _backward(how, saved, d_out):
    (block_T, block_S), scale, softcap = how
    q_BNTH, k_BKSH, v_BKSH, bias, mask, out, log = saved
    B, K, S, H = k_BKSH.shape
    num_blocks_T = q_BNTH.shape[2] // block_T
    dot = jnp.sum(out.astype(jnp.float32) * d_out, axis=-1, keepdims=True)  # what the softmax's gradient subtracts

    def keys(carry, j):
        first_S = j * block_S
        k, v = cut(k_BKSH, 2, first_S, block_S), cut(v_BKSH, 2, first_S, block_S)

        def queries(i, carry):
            dq, d_bias, dk, dv = carry
            first_T = i * block_T
            q, d_out_block = cut(q_BNTH, 2, first_T, block_T), cut(d_out, 2, first_T, block_T)
            scores, pull_back = jax.vjp(
                lambda q, k, bias: _scores(q, k, bias, mask, first_T, first_S, scale, softcap), q, k, bias
            )
            may = _may_attend(mask, first_T, block_T, first_S, block_S)
            weights = jnp.where(may, jnp.exp(scores - cut(log, 2, first_T, block_T)), 0.0)
            d_scores = weights * (_scores_of(d_out_block, v) - cut(dot, 2, first_T, block_T))
            dq_block, dk_block, d_bias_block = pull_back(d_scores)
            dv_block = _weighted_rows(weights, d_out_block, K)
            dq = jax.lax.dynamic_update_slice_in_dim(dq, cut(dq, 2, first_T, block_T) + dq_block, first_T, 2)
            d_bias = jax.tree.map(jnp.add, d_bias, d_bias_block)
            return dq, d_bias, dk + dk_block.astype(jnp.float32), dv + dv_block

        zero = jnp.zeros((B, K, block_S, H), jnp.float32)
        first = _first_block(mask, first_S, block_T, num_blocks_T)
        dq, d_bias, dk, dv = jax.lax.fori_loop(first, num_blocks_T, queries, (*carry, zero, zero))
        return (dq, d_bias), (dk, dv)

    start = (jnp.zeros(q_BNTH.shape, jnp.float32), jax.tree.map(jnp.zeros_like, bias))
    (dq, d_bias), parts = jax.lax.scan(keys, start, jnp.arange(S // block_S))
    dk, dv = (jnp.moveaxis(x, 0, 2).reshape(B, K, S, H) for x in parts)
    return dq.astype(q_BNTH.dtype), dk.astype(k_BKSH.dtype), dv.astype(v_BKSH.dtype), d_bias, None


_attend.defvjp(_forward, _backward)


def _scores(q_BNtH, k_BKsH, bias, mask, first_T, first_S, scale, softcap):
    """Of a block: [B, N, t, s] float32, before the mask."""
    scores = _scores_of(q_BNtH * scale, k_BKsH)
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        scores += bias.block(mask, first_T, scores.shape[2], first_S, scores.shape[3])
    return scores


def _scores_of(q_BNtH, k_BKsH):
    B, N, t, H = q_BNtH.shape
    K, s = k_BKsH.shape[1:3]
    q_BKMH = q_BNtH.reshape(B, K, -1, H)  # the G queries that share a key head, as rows of one product
    return jnp.einsum("BKMH,BKSH->BKMS", q_BKMH, k_BKsH, preferred_element_type=jnp.float32).reshape(B, N, t, s)


def _weighted(weights_BNts, v_BKsH):
    B, N, t, s = weights_BNts.shape
    K, _, H = v_BKsH.shape[1:]
    weights_BKMs = weights_BNts.reshape(B, K, -1, s)
    out = jnp.einsum("BKMS,BKSH->BKMH", weights_BKMs, v_BKsH, preferred_element_type=jnp.float32)
    return out.reshape(B, N, t, H)


def _weighted_rows(weights_BNts, x_BNtH, K):
    """Sum over queries, and over the query heads that share a key head: [B, K, s, H] float32."""
    B, N, t, s = weights_BNts.shape
    weights, x = weights_BNts.reshape(B, K, -1, s), x_BNtH.reshape(B, K, N // K * t, -1)
    return jnp.einsum("BKMS,BKMH->BKSH", weights.astype(x.dtype), x, preferred_element_type=jnp.float32)


def _may_attend(mask, first_T, t, first_S, s):
    may = mask.block(first_T, t, first_S, s)
    return True if may is None else may[:, None]


def _last_block(mask, last_query, block_S, num_blocks):
    """Blocks of keys up to the one of the last query's own slot: no later one is seen."""
    if not mask.is_causal:
        return num_blocks
    return jnp.clip(-(-(mask.first_slot + last_query) // block_S), 0, num_blocks)


def _first_block(mask, first_key, block_T, num_blocks):
    """The first block of queries that sees a key."""
    if not mask.is_causal:
        return 0
    return jnp.clip((first_key - mask.first_slot) // block_T, 0, num_blocks)
