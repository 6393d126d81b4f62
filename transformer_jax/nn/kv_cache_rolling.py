"""Rolling KV cache: bounded memory for texts of any length, for a model with a sliding window.

Jiang et al. 2023, section 2. This file maps positions to slots; the cache itself is a DecodeCache (kv_cache.py).
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from transformer_jax.errors import UserError
from transformer_jax.nn.masks import Mask


class RollingState(flax.struct.PyTreeNode):
    """State of a rolling cache: the token at position p of a row is in slot p modulo S. Jiang et al. 2023, section 2.

    Padding gets no slot, so the number of tokens of a row alone determines the contents of its slots. A new token
    overwrites the one S positions before it, which no query of the same call may attend: S = window + max_new - 1.
    """

    newest: (
        jax.Array
    )  # [B, max_new] bool: True for tokens among the last max_new inputs, oldest first, False for padding
    spare: jax.Array  # int32: number of inputs that can be removed; below 0: too many were, and keys are lost
    window: int = flax.struct.field(pytree_node=False)

    @property
    def max_new(self) -> int:
        """Maximum number of inputs in one call, and of inputs that can be removed again."""
        return self.newest.shape[1]


def append_rolling(cache: Any, is_token: jax.Array) -> Any:
    """Rolling cache's part of `kv_cache.append`, after `num_tokens` was updated: `is_token` [B, T] are the newest."""
    rolling = cache.rolling
    num_new = is_token.shape[1]
    if num_new > rolling.max_new:
        raise UserError(
            f"cache: {num_new} new tokens at once, where the rolling cache was made for {rolling.max_new}: they would "
            "overwrite keys inside the window. Feed fewer at a time, or make a cache with a larger max_new."
        )
    newest = jnp.concatenate([rolling.newest, is_token], axis=1)[:, num_new:]
    spare = jnp.where(rolling.spare < 0, rolling.spare, jnp.minimum(rolling.spare + num_new, rolling.max_new))
    is_token = jnp.arange(cache.capacity) < cache.num_tokens
    return cache._replace(is_token=is_token, rolling=rolling.replace(newest=newest, spare=spare))


def rolling_mask(cache: Any, mask: Mask) -> Mask:
    """Rolling cache's part of `kv_cache.newest_mask`: a token goes to the slot of its position, padding to none.

    The position of a slot is that of the newest token written there; below 0: none was. A slot whose token was removed
    by `rewind` counts as holding the token before it. That one is lost, but outside the window.
    """
    assert mask.is_key is not None and mask.query_positions is not None
    newest = cache.num_tokens - 1
    num_slots = cache.capacity
    return mask.replace(
        is_key=cache.is_token,
        key_positions=newest - (newest - jnp.arange(num_slots)) % num_slots,
        query_slots=jnp.where(mask.is_key, mask.query_positions % num_slots, num_slots),  # num_slots: none
    )


def rewind_rolling(cache: Any, num_removed: jax.Array | int) -> Any:
    """Rolling cache's part of `kv_cache.rewind`: remove the newest `num_removed` inputs of every row."""
    rolling = cache.rolling
    index = jnp.arange(rolling.max_new)
    is_removed = index >= rolling.max_new - num_removed
    num_tokens = cache.num_tokens - jnp.sum(rolling.newest & is_removed, axis=1, keepdims=True, dtype=jnp.int32)
    newest = jnp.roll(rolling.newest, num_removed, axis=1) & (index >= num_removed)
    is_token = jnp.arange(cache.capacity) < num_tokens
    rolling = rolling.replace(newest=newest, spare=rolling.spare - num_removed)
    return cache._replace(is_token=is_token, num_tokens=num_tokens, rolling=rolling)
