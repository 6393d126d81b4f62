"""Position schemes (learned, sinusoidal, rotary, T5, ALiBi, Shaw), as functions of explicit positions [B, T].

A scheme adds a vector to the embedding (learned, sinusoidal), rotates queries and keys (rotary), adds a bias to each
score (T5, ALiBi), or a vector to each key and value (Shaw). Positions count the tokens of a row, so padding on the
left shifts nothing.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from transformer_jax.config import LayerConfig, TransformerConfig
from transformer_jax.errors import choose
from transformer_jax.nn.masks import Mask, slice_axis
from transformer_jax.nn.rope_scaling import ROPE_SCALINGS, attention_factor


def token_positions(is_token: jax.Array, tokens_before: jax.Array | int = 0) -> jax.Array:
    """Count tokens: the position of each token of a row, padding not counted.

    Args:
      is_token: [B, T] bool.
      tokens_before: [B, 1], number of tokens in earlier calls.
    Returns:
      [B, T] int32; padding gets the position of the token before it (0 at the start).
    """
    return jnp.maximum(tokens_before + jnp.cumsum(is_token, axis=1) - 1, 0)


def segment_positions(segments: jax.Array) -> jax.Array:
    """Position of each token in its own text, from the segment ids [B, T] of texts packed into a row."""
    slot = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    is_first = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return slot - jax.lax.cummax(jnp.where(is_first, slot, 0), axis=1)


def _halves(x):
    return jnp.split(x, 2, axis=-1)


def _pairs(x):
    return x[..., 0::2], x[..., 1::2]


class PairLayout(NamedTuple):
    """Layout of the pairs of numbers in a vector: `split` it into first and second numbers, or `join` these."""

    split: Callable
    join: Callable


PAIR_LAYOUTS = {
    # x[i] with x[i + H/2]: GPT-NeoX, Llama
    "halves": PairLayout(_halves, lambda first, second: jnp.concatenate([first, second], axis=-1)),
    # x[2i] with x[2i + 1]: GPT-J
    "pairs": PairLayout(
        _pairs, lambda first, second: jnp.stack([first, second], axis=-1).reshape(*first.shape[:-1], -1)
    ),
}


def sinusoid(positions: jax.Array, d_model: int, layout: str = "pairs") -> jax.Array:
    """Sinusoidal positions: sines and cosines of [B, T] at geometrically growing wavelengths, [B, T, D] float32.

    Vaswani et al. 2017, section 3.5: number 2i is sin(p / 10000^(2i/D)), number 2i+1 the cosine of the
    same angle. (One tutorial in circulation gives the cosine a different exponent; the paper does not.)
    The authors' program, and Marian, put all sines before all cosines: layout "halves".
    """
    pair = jnp.arange(0, d_model, 2)
    angle = positions[..., None] / 10000.0 ** (pair / d_model)
    pair_layout = choose(PAIR_LAYOUTS, layout, "model.sinusoid_layout")
    return pair_layout.join(jnp.sin(angle), jnp.cos(angle))[..., :d_model]


def _sinusoidal(positions, config):
    return sinusoid(positions, config.d_model, config.sinusoid_layout)


def rotary(x_BTNH: jax.Array, positions_BT: jax.Array, config: TransformerConfig, layer: LayerConfig) -> jax.Array:
    """Rotary position embedding (RoPE): rotate each pair of a head's numbers by the angle position / theta^(2i/H).

    The product of a rotated query and a rotated key depends on the difference of their positions only.
    Su et al. 2021, section 3.4.2. With `rotary_dim` only as many first numbers of a head are rotated, as if H were this
    number, and the rest stay as they are (GPT-J, GPT-NeoX, Phi).
    """
    layout = choose(PAIR_LAYOUTS, config.rope_layout, "model.rope_layout")
    scale = choose(ROPE_SCALINGS, layer.rope_scaling, "model.rope_scaling")
    num_rotated = config.rotary_dim or x_BTNH.shape[-1]
    half = num_rotated // 2
    wavelengths = scale(2.0 * math.pi * layer.rope_theta ** (jnp.arange(half) / half), positions_BT, config, layer)
    angle = positions_BT[:, :, None, None] * (2.0 * math.pi / wavelengths)  # [B, T, 1, half]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    if layer.rope_scaling in ("yarn", "longrope"):
        sin *= attention_factor(config)
        cos *= attention_factor(config)
    first, second = layout.split(x_BTNH[..., :num_rotated].astype(jnp.float32))  # angles of long contexts need float32
    rotated = layout.join(first * cos - second * sin, second * cos + first * sin).astype(x_BTNH.dtype)
    rest = x_BTNH[..., num_rotated:]
    return jnp.concatenate([rotated, rest], axis=-1) if rest.shape[-1] else rotated


class ScoreBias(Protocol):
    """Bias that is added to the attention scores, computed for any block of queries and keys."""

    def block(self, mask: Mask, first_query: jax.Array | int, T: int, first_key: jax.Array | int, S: int) -> jax.Array:
        """Compute the bias for T queries and S keys: [B or 1, N or 1, T, S]."""

    def padded(self, more_queries: int, more_keys: int) -> "ScoreBias":
        """The bias with more queries and keys at the end."""


class DenseBias(flax.struct.PyTreeNode):
    """Score bias given as an array."""

    values: jax.Array  # [B or 1, N or 1, T, S]

    def block(self, mask: Mask, first_query: jax.Array | int, T: int, first_key: jax.Array | int, S: int) -> jax.Array:
        """Slice the bias for T queries and S keys: [B or 1, N or 1, T, S]."""
        return slice_axis(slice_axis(self.values, 2, first_query, T), 3, first_key, S)

    def padded(self, more_queries: int, more_keys: int) -> "DenseBias":
        """The bias with zeros for more queries and keys at the end."""
        return DenseBias(jnp.pad(self.values, ((0, 0), (0, 0), (0, more_queries), (0, more_keys))))


class DistanceBias(flax.struct.PyTreeNode):
    """Score bias that depends on the head and on the distance from query to key."""

    weights: Any  # pytree of arrays
    of_distance: Callable = flax.struct.field(pytree_node=False)  # (weights, key - query [B, T, S]) -> [B, N, T, S]

    def block(self, mask: Mask, first_query: jax.Array | int, T: int, first_key: jax.Array | int, S: int) -> jax.Array:
        """Compute the bias for T queries and S keys: [B or 1, N, T, S]."""
        key_positions = mask.key_positions_at(first_key, S)
        distance = key_positions[:, None] - mask.query_positions_at(first_query, T)[:, :, None]
        return self.of_distance(self.weights, distance)

    def padded(self, more_queries: int, more_keys: int) -> "DistanceBias":
        """The same bias: it is computed from positions, which the mask pads."""
        return self


def t5_bucket(distance: jax.Array, num_buckets: int, max_distance: int, is_causal: bool) -> jax.Array:
    """Relative position bucket of a distance (key - query), T5's. Raffel et al. 2020, section 2.1.

    Small distances have a bucket each, larger ones share buckets of growing width, the last is for all beyond. Keys
    after the query have half of the buckets, unless attention is causal.
    """
    first: jax.Array | int = 0
    if is_causal:
        far = jnp.maximum(-distance, 0)
    else:
        num_buckets //= 2
        first = jnp.where(distance > 0, num_buckets, 0)
        far = jnp.abs(distance)
    num_exact = num_buckets // 2
    ratio = jnp.log(jnp.maximum(far, 1) / num_exact) / math.log(max_distance / num_exact)  # in float32, as T5 rounds it
    wide = num_exact + (ratio * (num_buckets - num_exact)).astype(jnp.int32)
    return first + jnp.where(far < num_exact, far, jnp.minimum(wide, num_buckets - 1))


def _t5_of_distance(table, distance, *, max_distance, is_causal):
    bucket = t5_bucket(distance, table.shape[0], max_distance, is_causal)
    return jnp.moveaxis(table[bucket], -1, 1).astype(jnp.float32)


class T5Bias(nn.Module):
    """T5 relative position bias: a learned number for each bucket of distances and each head, shared by all layers."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, is_causal: bool) -> DistanceBias:
        """Return the learned table [buckets, N] as a score bias."""
        config = self.config
        shape = (config.relative_buckets, config.num_heads)
        table = self.param("embedding", nn.initializers.normal(config.init_std), shape)
        of_distance = functools.partial(_t5_of_distance, max_distance=config.relative_max_distance, is_causal=is_causal)
        return DistanceBias(table, of_distance)


def alibi_slopes(num_heads: int) -> list[float]:
    """ALiBi slopes of N heads: 2^(-8/N), 2^(-16/N), ... Press et al. 2022, section 3.

    If N is not a power of 2: the slopes of the next smaller one, then every other slope of the next larger one, as in
    the authors' program.
    """
    below = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * i / below) for i in range(1, below + 1)]
    between = [2.0 ** (-4.0 * i / below) for i in range(1, 2 * below + 1, 2)]
    return slopes + between[: num_heads - below]


def _alibi_of_distance(slopes, distance):
    return -jnp.asarray(slopes)[:, None, None] * jnp.abs(distance)[:, None].astype(jnp.float32)


class Alibi(nn.Module):
    """ALiBi: a penalty proportional to the distance, with one slope per head. Press et al. 2022, section 3."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, is_causal: bool) -> DistanceBias:
        """Return the slopes as a score bias; there are no parameters."""
        slopes = tuple(alibi_slopes(self.config.num_heads))
        return DistanceBias((), lambda _, distance: _alibi_of_distance(slopes, distance))


class Relative(flax.struct.PyTreeNode):
    """Relative position vectors for the distances -m to m (larger ones count as m), added to keys and to values.

    Shaw et al. 2018. C = 2 m + 1 vectors each.
    """

    keys: jax.Array  # [C, H]
    values: jax.Array  # [C, H]

    def index(self, mask: Mask, T: int, S: int) -> jax.Array:
        """Index of the vector for each query and key, [B or 1, T, S]."""
        max_distance = self.keys.shape[0] // 2
        distance = mask.key_positions_at(0, S)[:, None] - mask.query_positions_at(0, T)[:, :, None]
        return jnp.clip(distance, -max_distance, max_distance) + max_distance


class Scheme(NamedTuple):
    """Position scheme: the ways in which positions enter the model."""

    vectors: Callable | None = None  # (positions [B, T], config) -> [B, T, D], added to the embedding
    is_learned: bool = False  # the vectors are a parameter [position_offset + max_len, D]
    rotate: Callable | None = None  # (x [B, T, N, H], positions [B, T], config, layer) -> x, for queries and keys
    bias: Callable | None = None  # config -> module; module(is_causal) -> a bias for the scores
    is_relative: bool = False  # each layer learns a Relative


POSITIONS = {
    "none": Scheme(),
    "learned": Scheme(is_learned=True),
    "sinusoidal": Scheme(vectors=_sinusoidal),
    "rotary": Scheme(rotate=rotary),
    "t5": Scheme(bias=T5Bias),
    "alibi": Scheme(bias=Alibi),
    "shaw": Scheme(is_relative=True),
}
