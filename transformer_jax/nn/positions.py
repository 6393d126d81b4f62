"""Where a token stands, as functions of explicit positions [B, T], which count the tokens of a row.

A scheme adds a vector to the embedding (learned, sinusoidal), turns queries and keys (rotary), adds a number to each
score (T5, ALiBi), or a vector to each key and value (Shaw). Padding on the left shifts nothing.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import choose
from transformer_jax.nn.masks import Mask, cut


def count_tokens(is_token: jax.Array, tokens_before: jax.Array | int = 0) -> jax.Array:
    """Position of each token of a row, counting tokens only.

    Args:
      is_token: [B, T] bool.
      tokens_before: [B, 1], tokens that an earlier call has already seen.
    Returns:
      [B, T] int32; padding gets the position of the token before it (0 at the start).
    """
    return jnp.maximum(tokens_before + jnp.cumsum(is_token, axis=1) - 1, 0)


def count_in_segments(segments: jax.Array) -> jax.Array:
    """Position of each token in its own text, from `segments` [B, T]: texts side by side, each with a number."""
    place = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    is_first = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return place - jax.lax.cummax(jnp.where(is_first, place, 0), axis=1)


def _halves(x):
    return jnp.split(x, 2, axis=-1)


def _pairs(x):
    return x[..., 0::2], x[..., 1::2]


# How pairs of numbers lie in a vector, (split, join): x[i] with x[i + H/2] (GPT-NeoX, Llama), or x[2i] with x[2i + 1]
# (GPT-J).
PAIR_LAYOUTS = {
    "halves": (_halves, lambda first, second: jnp.concatenate([first, second], axis=-1)),
    "pairs": (_pairs, lambda first, second: jnp.stack([first, second], axis=-1).reshape(*first.shape[:-1], -1)),
}


def sinusoid(positions: jax.Array, d_model: int, layout: str = "pairs") -> jax.Array:
    """Sines and cosines of positions [B, T] at geometrically growing wavelengths: [B, T, D] float32.

    Vaswani et al. 2017, section 3.5: number 2i is sin(p / 10000^(2i/D)), number 2i+1 the cosine of the
    same angle. (One tutorial in circulation gives the cosine an exponent of its own; the paper does not.)
    The authors' program, and Marian, put all sines before all cosines: layout "halves".
    """
    pair = jnp.arange(0, d_model, 2)
    angle = positions[..., None] / 10000.0 ** (pair / d_model)
    join = choose(PAIR_LAYOUTS, layout, "model.sinusoid_layout")[1]
    return join(jnp.sin(angle), jnp.cos(angle))[..., :d_model]


def _sinusoidal(positions, config):
    return sinusoid(positions, config.d_model, config.sinusoid_layout)


def _no_scaling(wavelengths, config):
    return wavelengths


def _linear_scaling(wavelengths, config):
    """Positions count for less: Chen et al. 2023, equation 4."""
    return wavelengths * config.rope_factor


def _llama3_scaling(wavelengths, config):
    """Long waves are stretched, short ones stay, between them the frequency is mixed: Llama Team 2024, section 3.2."""
    turns = config.rope_original_max_len / wavelengths  # of the context that the model was first trained with
    low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
    share = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - share) / (config.rope_factor * wavelengths) + share / wavelengths)


ROPE_SCALINGS = {"none": _no_scaling, "linear": _linear_scaling, "llama3": _llama3_scaling}


def rotary(x_BTNH: jax.Array, positions_BT: jax.Array, config: TransformerConfig) -> jax.Array:
    """Turn each pair of a head by the angle position / theta^(2i/H).

    The product of a turned query and a turned key depends on the difference of their positions only.
    Su et al. 2021, section 3.4.2.
    """
    split, join = choose(PAIR_LAYOUTS, config.rope_layout, "model.rope_layout")
    scale = choose(ROPE_SCALINGS, config.rope_scaling, "model.rope_scaling")
    half = x_BTNH.shape[-1] // 2
    wavelengths = scale(2.0 * math.pi * config.rope_theta ** (jnp.arange(half) / half), config)
    angle_BT1F = positions_BT[:, :, None, None] * (2.0 * math.pi / wavelengths)
    sin, cos = jnp.sin(angle_BT1F), jnp.cos(angle_BT1F)
    first, second = split(x_BTNH.astype(jnp.float32))  # angles of long contexts need float32
    return join(first * cos - second * sin, second * cos + first * sin).astype(x_BTNH.dtype)


@flax.struct.dataclass
class DenseBias:
    """A number for each score, given as it is."""

    values: jax.Array  # [B or 1, N or 1, T, S]

    def block(self, mask: Mask, first_query: Any, T: int, first_key: Any, S: int) -> jax.Array:
        """For T queries and S keys: [B or 1, N or 1, T, S]."""
        return cut(cut(self.values, 2, first_query, T), 3, first_key, S)

    def padded(self, more_queries: int, more_keys: int) -> "DenseBias":
        """The same with more queries and keys at the end."""
        return DenseBias(jnp.pad(self.values, ((0, 0), (0, 0), (0, more_queries), (0, more_keys))))


@flax.struct.dataclass
class DistanceBias:
    """A number for each score that depends on the head and on the distance from query to key."""

    weights: Any  # arrays
    of_distance: Callable = flax.struct.field(pytree_node=False)  # (weights, key - query [B, T, S]) -> [B, N, T, S]

    def block(self, mask: Mask, first_query: Any, T: int, first_key: Any, S: int) -> jax.Array:
        """For T queries and S keys: [B or 1, N, T, S]."""
        distance = mask.keys(first_key, S)[:, None] - mask.queries(first_query, T)[:, :, None]
        return self.of_distance(self.weights, distance)

    def padded(self, more_queries: int, more_keys: int) -> "DistanceBias":
        """Itself: it is made of positions."""
        return self


def t5_bucket(distance: jax.Array, num_buckets: int, max_distance: int, is_causal: bool) -> jax.Array:
    """The bucket of a distance (key - query): one each for near keys, wider ones further off, the last for all beyond.

    Raffel et al. 2020, section 2.1. Keys after the query have half of the buckets, unless nothing looks there.
    """
    first = 0
    if is_causal:
        far = jnp.maximum(-distance, 0)
    else:
        num_buckets //= 2
        first = jnp.where(distance > 0, num_buckets, 0)
        far = jnp.abs(distance)
    exact = num_buckets // 2
    ratio = jnp.log(jnp.maximum(far, 1) / exact) / math.log(max_distance / exact)  # in float32, as T5 rounds it
    wide = exact + (ratio * (num_buckets - exact)).astype(jnp.int32)
    return first + jnp.where(far < exact, far, jnp.minimum(wide, num_buckets - 1))


def _t5_of_distance(table, distance, *, max_distance, is_causal):
    bucket = t5_bucket(distance, table.shape[0], max_distance, is_causal)
    return jnp.moveaxis(table[bucket], -1, 1).astype(jnp.float32)


class T5Bias(nn.Module):
    """A learned number for each bucket of distances and each head; one table for all layers of a stack."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, is_causal: bool) -> DistanceBias:
        """The table [buckets, N] as a bias."""
        config = self.config
        shape = (config.relative_buckets, config.num_heads)
        table = self.param("embedding", nn.initializers.normal(config.init_std), shape)
        of_distance = functools.partial(_t5_of_distance, max_distance=config.relative_max_distance, is_causal=is_causal)
        return DistanceBias(table, of_distance)


def alibi_slopes(num_heads: int) -> list[float]:
    """2^(-8/N), 2^(-16/N), ...; for N that is no power of 2, every other slope of the next one fills up.

    Press et al. 2022, section 3, and (for other N) the authors' program.
    """
    below = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * i / below) for i in range(1, below + 1)]
    between = [2.0 ** (-4.0 * i / below) for i in range(1, 2 * below + 1, 2)]
    return slopes + between[: num_heads - below]


def _alibi_of_distance(slopes, distance):
    return -jnp.asarray(slopes)[:, None, None] * jnp.abs(distance)[:, None].astype(jnp.float32)


class Alibi(nn.Module):
    """A penalty that grows with the distance, with a slope of its own for each head. Press et al. 2022, section 3."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, is_causal: bool) -> DistanceBias:
        """No parameters: the slopes as a bias."""
        slopes = tuple(alibi_slopes(self.config.num_heads))
        return DistanceBias((), lambda _, distance: _alibi_of_distance(slopes, distance))


@flax.struct.dataclass
class Relative:
    """Vectors for the distances -M to M (further ones count as M), added to keys and to values. Shaw et al. 2018."""

    keys: jax.Array  # [2 M + 1, H]
    values: jax.Array  # [2 M + 1, H]

    def index(self, mask: Mask, T: int, S: int) -> jax.Array:
        """Which vector belongs to each query and key, [B or 1, T, S]."""
        most = self.keys.shape[0] // 2
        distance = mask.keys(0, S)[:, None] - mask.queries(0, T)[:, :, None]
        return jnp.clip(distance, -most, most) + most


class Scheme(NamedTuple):
    """One way to tell positions apart."""

    vectors: Callable | None = None  # (positions [B, T], config) -> [B, T, D], added to the embedding
    is_learned: bool = False  # or the vectors are a parameter [position_offset + max_len, D]
    rotate: Callable | None = None  # (x [B, T, N, H], positions [B, T], config) -> the same shape, for queries and keys
    bias: Callable | None = None  # config -> module; module(is_causal) -> a bias for the scores
    is_relative: bool = False  # each layer learns vectors for distances, beside its keys and values


POSITIONS = {
    "none": Scheme(),
    "learned": Scheme(is_learned=True),
    "sinusoidal": Scheme(vectors=_sinusoidal),
    "rotary": Scheme(rotate=rotary),
    "t5": Scheme(bias=T5Bias),
    "alibi": Scheme(bias=Alibi),
    "shaw": Scheme(is_relative=True),
}
