"""What decoding remembers: the keys and values of every token so far, as an explicit pytree.

A cache goes in and comes out of `extend`; nothing is hidden in a module. Layers are separate arrays, not
one stacked [L, ...]: on a CPU a decode step over a stacked cache took more than twice as long.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.config import TransformerConfig, UserError


class KVCache(NamedTuple):
    """One layer's keys and values, [B, S, K, H] each."""

    keys: jax.Array
    values: jax.Array


class DecodeCache(NamedTuple):
    """The state of a decode: every layer's KVCache and what its slots hold."""

    layers: tuple[KVCache, ...]
    is_token: jax.Array  # [B, S] bool: slots that hold a token, not padding or nothing
    num_written: jax.Array  # int32: slots written so far, the same for every row

    @property
    def capacity(self) -> int:
        """Slots in all, S."""
        return self.is_token.shape[1]

    @property
    def num_tokens(self) -> jax.Array:
        """Tokens (not padding) seen so far, [B, 1]: the position of the next one."""
        return jnp.sum(self.is_token, axis=1, keepdims=True, dtype=jnp.int32)


def make_cache(config: TransformerConfig, batch_size: int, capacity: int) -> DecodeCache:
    """An empty cache for `batch_size` rows of at most `capacity` slots, padding included.

    Raises:
      UserError: capacity above model.max_len.
    """
    if capacity > config.max_len:
        raise UserError(f"cache capacity={capacity}: must be at most model.max_len={config.max_len}.")
    shape = (batch_size, capacity, config.num_kv_heads, config.head_dim)
    layer = KVCache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))
    return DecodeCache((layer,) * config.num_layers, jnp.zeros((batch_size, capacity), bool), jnp.int32(0))


def write(layer: KVCache, keys: jax.Array, values: jax.Array, slot: jax.Array) -> KVCache:
    """`keys` and `values` [B, T, K, H] put into the slots from `slot` on."""
    at = (0, slot, 0, 0)
    return KVCache(
        jax.lax.dynamic_update_slice(layer.keys, keys.astype(layer.keys.dtype), at),
        jax.lax.dynamic_update_slice(layer.values, values.astype(layer.values.dtype), at),
    )


def mark(cache: DecodeCache, is_token: jax.Array) -> DecodeCache:
    """The next slots hold `is_token` [B, T]; their keys and values are still to be written.

    Raises:
      UserError: the slots end before the new tokens do (only where `num_written` is known, outside jit;
        inside, `extend` returns NaN logits instead: JAX would silently overwrite the last slots).
    """
    num_new = is_token.shape[1]
    full = f"cache: {num_new} new slots do not fit into capacity={cache.capacity}"
    if num_new > cache.capacity:
        raise UserError(f"{full}. Make a larger cache, or feed fewer tokens.")
    if not isinstance(cache.num_written, jax.core.Tracer) and cache.num_written + num_new > cache.capacity:
        raise UserError(f"{full}, {cache.num_written} of it written. Make a larger cache.")
    slots = jax.lax.dynamic_update_slice(cache.is_token, is_token, (0, cache.num_written))
    return cache._replace(is_token=slots, num_written=cache.num_written + num_new)


def is_overrun(cache: DecodeCache) -> jax.Array:
    """Whether more slots were marked than there are (a bool scalar, also under jit)."""
    return cache.num_written > cache.capacity


def reorder(cache: DecodeCache, rows: jax.Array) -> DecodeCache:
    """Row i of the result is row `rows[i]` of the cache; there may be more rows than before, or fewer."""
    return jax.tree.map(lambda x: x[rows] if x.ndim else x, cache)
