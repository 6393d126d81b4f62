"""Linear attention: no softmax, so all keys so far fit into a state of constant size. Katharopoulos et al. 2020.

With a feature map f for exp(q k), sum_s f(q) f(k_s) v_s = f(q) (sum_s f(k_s) v_s^T): the sum over keys comes first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

CHUNK = 64  # tokens that attend to each other directly, and to earlier tokens through the state


class LinearState(NamedTuple):
    """Linear attention's decoding state, of constant size: sums over all keys so far."""

    keys: jax.Array  # [B, K, H] float32: sum of f(k)
    values: jax.Array  # [B, K, H, H] float32: sum of f(k) v^T


def empty_state(batch_size: int, num_kv_heads: int, head_dim: int) -> LinearState:
    """State before the first token: all sums 0."""
    shape = (batch_size, num_kv_heads, head_dim)
    return LinearState(jnp.zeros(shape), jnp.zeros((*shape, head_dim)))


def feature_map(x: jax.Array) -> jax.Array:
    """Feature map elu(x) + 1, which is above 0: the paper's equation 7."""
    return jax.nn.elu(x.astype(jnp.float32)) + 1.0


def attend_linearly(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, is_key: jax.Array | None = None
) -> jax.Array:
    """Bidirectional linear attention, [B, T, N, H]: every query attends to every key. Equation 6; 0 without any key."""
    fk_BSKH = _features_of_tokens(k_BSKH, is_key)
    products = jnp.einsum("BSKH,BSKJ->BKHJ", fk_BSKH, v_BSKH.astype(jnp.float32))
    fq_BTKGH = _group(feature_map(q_BTNH), k_BSKH.shape[2])
    return _divide(
        jnp.einsum("BTKGH,BKHJ->BTKGJ", fq_BTKGH, products),
        jnp.einsum("BTKGH,BKH->BTKG", fq_BTKGH, fk_BSKH.sum(1)),
        v_BSKH.dtype,
    )


def extend_linearly(
    q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, state: LinearState, is_key: jax.Array | None = None
) -> tuple[jax.Array, LinearState]:
    """Causal linear attention from a state: [B, T, N, H], and the new state. Equations 9 to 12.

    Each query attends to the keys in the state and to the new ones up to its own. From the empty state this is causal
    attention over a sequence; with T = 1, a decode step.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    chunk = min(CHUNK, T)
    pad = lambda x: jnp.pad(x, ((0, 0), (0, -T % chunk), (0, 0), (0, 0)))  # noqa: E731
    padded = pad(feature_map(q_BTNH)), pad(_features_of_tokens(k_BTKH, is_key)), pad(v_BTKH.astype(jnp.float32))
    chunks = [jnp.moveaxis(x.reshape(B, -1, chunk, *x.shape[2:]), 1, 0) for x in padded]
    is_visible = jnp.tril(jnp.ones((chunk, chunk)))

    def one_chunk(state, chunk):
        fq, fk, v = chunk
        fq_BtKGH = _group(fq, K)
        near = jnp.einsum("BtKGH,BsKH->BKGts", fq_BtKGH, fk) * is_visible
        total = jnp.einsum("BtKGH,BKHJ->BtKGJ", fq_BtKGH, state.values) + jnp.einsum("BKGts,BsKJ->BtKGJ", near, v)
        weight = jnp.einsum("BtKGH,BKH->BtKG", fq_BtKGH, state.keys) + jnp.einsum("BKGts->BtKG", near)
        state = LinearState(state.keys + fk.sum(1), state.values + jnp.einsum("BsKH,BsKJ->BKHJ", fk, v))
        return state, _divide(total, weight, v_BTKH.dtype)

    state, outs = jax.lax.scan(one_chunk, state, chunks)
    return jnp.moveaxis(outs, 0, 1).reshape(B, -1, N, H)[:, :T], state


def _features_of_tokens(k_BSKH, is_key):
    features = feature_map(k_BSKH)
    return features if is_key is None else jnp.where(is_key[:, :, None, None], features, 0.0)


def _group(x_BTNH, K):
    B, T, N, H = x_BTNH.shape
    return x_BTNH.reshape(B, T, K, N // K, H)


def _divide(total_BTKGJ, weight_BTKG, dtype):
    weight = weight_BTKG[..., None]
    out = total_BTKGJ / jnp.where(weight == 0.0, 1.0, weight)
    return out.reshape(*out.shape[:2], -1, out.shape[-1]).astype(dtype)


def unsupported(extra: str) -> str:
    """Error message: an option that changes attention scores, which linear attention does not have."""
    return f"model.attention='linear': has no scores, and so no {extra}. Take attention='softmax'."
