"""Where a token stands, as functions of explicit positions [B, T].

A scheme either adds a vector to the embedding (learned, sinusoidal) or turns queries and keys (rotary).
Positions count the tokens of a row, so padding on the left shifts nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


def count_tokens(is_token: jax.Array, tokens_before: jax.Array | int = 0) -> jax.Array:
    """Position of each token of a row, counting tokens only.

    Args:
      is_token: [B, T] bool.
      tokens_before: [B, 1], tokens that an earlier call has already seen.
    Returns:
      [B, T] int32; padding gets the position of the token before it (0 at the start).
    """
    return jnp.maximum(tokens_before + jnp.cumsum(is_token, axis=1) - 1, 0)


def sinusoid(positions: jax.Array, d_model: int) -> jax.Array:
    """Sines and cosines of positions [B, T] at geometrically growing wavelengths: [B, T, D] float32.

    Vaswani et al. 2017, section 3.5: number 2i is sin(p / 10000^(2i/D)), number 2i+1 the cosine of the
    same angle. (One tutorial in circulation gives the cosine an exponent of its own; the paper does not.)
    """
    pair = jnp.arange(0, d_model, 2)
    angle = positions[..., None] / 10000.0 ** (pair / d_model)
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(*positions.shape, -1)[..., :d_model]


def rotary(x_BTNH: jax.Array, positions_BT: jax.Array, theta: float) -> jax.Array:
    """Turn each pair (x[i], x[i + H/2]) of a head by the angle position / theta^(2i/H).

    The product of a turned query and a turned key depends on the difference of their positions only.
    Su et al. 2021, section 3.4.2; the halves are paired as in GPT-NeoX and Llama.
    """
    half = x_BTNH.shape[-1] // 2
    angle_BT1F = positions_BT[:, :, None, None] / theta ** (jnp.arange(half) / half)
    sin, cos = jnp.sin(angle_BT1F), jnp.cos(angle_BT1F)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)  # angles of long contexts need float32
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTNH.dtype)


def _unturned(x_BTNH, positions_BT, theta):
    return x_BTNH


class Scheme(NamedTuple):
    """One way to tell positions apart."""

    vectors: Callable | None  # (positions [B, T], D) -> [B, T, D], added to the embedding
    is_learned: bool  # or the vectors are a parameter [max_len, D]
    turn: Callable  # (x [B, T, N, H], positions [B, T], theta) -> the same shape, for queries and keys


POSITIONS = {
    "learned": Scheme(vectors=None, is_learned=True, turn=_unturned),
    "sinusoidal": Scheme(vectors=sinusoid, is_learned=False, turn=_unturned),
    "rotary": Scheme(vectors=None, is_learned=False, turn=rotary),
}
