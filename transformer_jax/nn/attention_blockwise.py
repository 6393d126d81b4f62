"""Blockwise attention (FlashAttention's algorithm): memory grows with T, not with T * S, for values and gradients.

A softmax can be taken block by block of keys, with the largest score so far and the sum so far (Milakov & Gimelshein
2018). The gradient computes each block's weights again from the logarithm of that sum (Dao et al. 2022, appendix B).
Masks and biases are computed block by block, too, and the arrays inside a bias get their gradient.

Lower-case t and s are the queries and keys of one block; M = G t, the block's queries that share a key-value head.
"""

import functools

import jax
import jax.numpy as jnp

from transformer_jax.nn.layers import einsum_float32
from transformer_jax.nn.masks import Mask, slice_axis
from transformer_jax.nn.positions import ScoreBias

BLOCK = 512  # queries, and keys, of a block


def attend_in_blocks(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask,
    bias: ScoreBias | None,
    scale: float,
    softcap: float,
) -> jax.Array:
    """Compute `attention.attend` block by block, without dropout and relative vectors: [B, T, N, H]."""
    T = q_BTNH.shape[1]
    S = v_BSKH.shape[1]
    block_T = min(BLOCK, T)
    block_S = min(BLOCK, S)
    padding_T = -T % block_T
    padding_S = -S % block_S
    if padding_T or padding_S:
        mask = mask.padded(T, S, padding_T, padding_S)
        bias = None if bias is None else bias.padded(padding_T, padding_S)
        q_BTNH = jnp.pad(q_BTNH, ((0, 0), (0, padding_T), (0, 0), (0, 0)))
        k_BSKH, v_BSKH = (jnp.pad(x, ((0, 0), (0, padding_S), (0, 0), (0, 0))) for x in (k_BSKH, v_BSKH))
    q_BNTH, k_BKSH, v_BKSH = (x.swapaxes(1, 2) for x in (q_BTNH, k_BSKH, v_BSKH))
    blocks = (block_T, block_S)
    out = _attend((blocks, scale, softcap), q_BNTH, k_BKSH, v_BKSH, bias, mask)
    return out.swapaxes(1, 2)[:, :T]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static, q_BNTH, k_BKSH, v_BKSH, bias, mask):
    return _forward(static, q_BNTH, k_BKSH, v_BKSH, bias, mask)[0]


def _forward(static, q_BNTH, k_BKSH, v_BKSH, bias, mask):
    (block_T, block_S), scale, softcap = static
    B, N, T, H = q_BNTH.shape
    num_blocks = k_BKSH.shape[2] // block_S

    def query_block(i):
        first_T = i * block_T
        q = slice_axis(q_BNTH, 2, first_T, block_T)

        def key_block(j, carry):
            max_score, total, out = carry
            first_S = j * block_S
            k = slice_axis(k_BKSH, 2, first_S, block_S)
            scores = _scores(q, k, bias, mask, first_T, first_S, scale, softcap)
            may_attend = _may_attend(mask, first_T, block_T, first_S, block_S)
            scores = jnp.where(may_attend, scores, -jnp.inf)
            new_max_score = jnp.maximum(max_score, jnp.max(scores, axis=-1, keepdims=True))
            anchor = jnp.where(new_max_score == -jnp.inf, 0.0, new_max_score)  # no key to attend so far
            weights = jnp.exp(scores - anchor)
            shrink = jnp.exp(max_score - anchor)
            total = total * shrink + jnp.sum(weights, axis=-1, keepdims=True)
            out = out * shrink + _weighted_values(weights.astype(v_BKSH.dtype), slice_axis(v_BKSH, 2, first_S, block_S))
            return new_max_score, total, out

        zero = jnp.zeros((B, N, block_T, 1), jnp.float32)
        carry = (zero - jnp.inf, zero, jnp.zeros((B, N, block_T, H), jnp.float32))
        end = _end_of_key_blocks(mask, first_T + block_T, block_S, num_blocks)
        max_score, total, out = jax.lax.fori_loop(0, end, key_block, carry)
        is_empty = total == 0.0
        log_total = jnp.where(is_empty, jnp.inf, max_score + jnp.log(jnp.where(is_empty, 1.0, total)))
        return (out / jnp.where(is_empty, 1.0, total)).astype(v_BKSH.dtype), log_total

    out, log_total = jax.lax.map(query_block, jnp.arange(T // block_T))  # [blocks, B, N, block_T, ...]
    out, log_total = (jnp.moveaxis(x, 0, 2).reshape(B, N, T, -1) for x in (out, log_total))
    return out, (q_BNTH, k_BKSH, v_BKSH, bias, mask, out, log_total)


def _backward(static, saved, d_out):
    (block_T, block_S), scale, softcap = static
    q_BNTH, k_BKSH, v_BKSH, bias, mask, out, log_total = saved
    B, K, S, H = k_BKSH.shape
    num_blocks_T = q_BNTH.shape[2] // block_T
    dot = jnp.sum(out.astype(jnp.float32) * d_out, axis=-1, keepdims=True)  # the softmax's gradient subtracts it

    def key_block(carry, j):
        first_S = j * block_S
        k = slice_axis(k_BKSH, 2, first_S, block_S)
        v = slice_axis(v_BKSH, 2, first_S, block_S)

        def query_block(i, carry):
            dq, d_bias, dk, dv = carry
            first_T = i * block_T
            q = slice_axis(q_BNTH, 2, first_T, block_T)
            d_out_block = slice_axis(d_out, 2, first_T, block_T)
            scores, pull_back = jax.vjp(
                lambda q, k, bias: _scores(q, k, bias, mask, first_T, first_S, scale, softcap), q, k, bias
            )
            may_attend = _may_attend(mask, first_T, block_T, first_S, block_S)
            weights = jnp.where(may_attend, jnp.exp(scores - slice_axis(log_total, 2, first_T, block_T)), 0.0)
            d_scores = weights * (_dot_products(d_out_block, v) - slice_axis(dot, 2, first_T, block_T))
            dq_block, dk_block, d_bias_block = pull_back(d_scores)
            dv_block = _sum_over_queries(weights, d_out_block, K)
            dq = jax.lax.dynamic_update_slice_in_dim(dq, slice_axis(dq, 2, first_T, block_T) + dq_block, first_T, 2)
            d_bias = jax.tree.map(jnp.add, d_bias, d_bias_block)
            return dq, d_bias, dk + dk_block.astype(jnp.float32), dv + dv_block

        zero = jnp.zeros((B, K, block_S, H), jnp.float32)
        first = _first_query_block(mask, first_S, block_T, num_blocks_T)
        dq, d_bias, dk, dv = jax.lax.fori_loop(first, num_blocks_T, query_block, (*carry, zero, zero))
        return (dq, d_bias), (dk, dv)

    carry = (jnp.zeros(q_BNTH.shape, jnp.float32), jax.tree.map(jnp.zeros_like, bias))
    (dq, d_bias), dk_dv = jax.lax.scan(key_block, carry, jnp.arange(S // block_S))
    dk, dv = (jnp.moveaxis(x, 0, 2).reshape(B, K, S, H) for x in dk_dv)
    return dq.astype(q_BNTH.dtype), dk.astype(k_BKSH.dtype), dv.astype(v_BKSH.dtype), d_bias, None


_attend.defvjp(_forward, _backward)


def _scores(q_BNtH, k_BKsH, bias, mask, first_T, first_S, scale, softcap):
    """Attention scores of one block before the mask: [B, N, t, s] float32."""
    scores = _dot_products(q_BNtH * scale, k_BKsH)
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        scores += bias.block(mask, first_T, scores.shape[2], first_S, scores.shape[3])
    return scores


def _dot_products(q_BNtH, k_BKsH):
    B, N, t, H = q_BNtH.shape
    K, s = k_BKsH.shape[1:3]
    q_BKMH = q_BNtH.reshape(B, K, -1, H)  # the G queries that share a key head, as rows of one product
    return einsum_float32("BKMH,BKSH->BKMS", q_BKMH, k_BKsH).reshape(B, N, t, s)


def _weighted_values(weights_BNts, v_BKsH):
    B, N, t, s = weights_BNts.shape
    K, _, H = v_BKsH.shape[1:]
    weights_BKMs = weights_BNts.reshape(B, K, -1, s)
    out = jnp.einsum("BKMS,BKSH->BKMH", weights_BKMs, v_BKsH, preferred_element_type=jnp.float32)
    return out.reshape(B, N, t, H)


def _sum_over_queries(weights_BNts, x_BNtH, K):
    """Weighted sum over queries, and over the query heads that share a key head: [B, K, s, H] float32."""
    B, N, t, s = weights_BNts.shape
    weights_BKMs = weights_BNts.reshape(B, K, -1, s)
    x_BKMH = x_BNtH.reshape(B, K, N // K * t, -1)
    return jnp.einsum("BKMS,BKMH->BKSH", weights_BKMs.astype(x_BKMH.dtype), x_BKMH, preferred_element_type=jnp.float32)


def _may_attend(mask, first_T, t, first_S, s):
    may_attend_BTS = mask.block(first_T, t, first_S, s)
    return True if may_attend_BTS is None else may_attend_BTS[:, None]


def _end_of_key_blocks(mask, last_query, block_S, num_blocks):
    """Count the key blocks up to the last query's own slot: a causal mask hides all later ones."""
    if not mask.is_causal:
        return num_blocks
    return jnp.clip(-(-(mask.first_slot + last_query) // block_S), 0, num_blocks)


def _first_query_block(mask, first_key, block_T, num_blocks):
    """Index of the first query block that may attend a key: a causal mask hides the key from all earlier ones."""
    if not mask.is_causal:
        return 0
    return jnp.clip((first_key - mask.first_slot) // block_T, 0, num_blocks)
