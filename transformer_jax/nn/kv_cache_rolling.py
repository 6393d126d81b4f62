"""A ring of slots: what a model with a window remembers of a text of any length. Jiang et al. 2023, section 2.

Here is the part of a DecodeCache (cache.py) that says which slots hold what; caches are what these functions take.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from transformer_jax.errors import UserError
from transformer_jax.nn.masks import Mask


@flax.struct.dataclass
class RollingState:
    """Of a cache that is a ring: the token at position p of a row is in slot p modulo S. Jiang et al. 2023, section 2.

    Padding has no slot, so what a slot holds follows from the number of tokens of its row alone. What a token writes
    over is S positions behind it, which no query sees: S = window + most_new - 1.
    """

    newest: jax.Array  # [B, most_new] bool: of the newest places read, in turn, those that hold a token
    spare: jax.Array  # int32: places that can be taken back; below 0: more were, and keys are lost
    window: int = flax.struct.field(pytree_node=False)

    @property
    def most_new(self) -> int:
        """Places that can be read at once, and that can be taken back."""
        return self.newest.shape[1]


def append_rolling(marked: Any, is_token: jax.Array) -> Any:
    """The rest of `kv_cache.append`: the newest places hold `is_token` [B, T]."""
    rolling, num_new = marked.rolling, is_token.shape[1]
    if num_new > rolling.most_new:
        raise UserError(
            f"cache: {num_new} new tokens at once, where the ring was made for {rolling.most_new}: they would write over "
            "keys that the window still has. Feed fewer at a time, or make a larger ring."
        )
    newest = jnp.concatenate([rolling.newest, is_token], axis=1)[:, num_new:]
    spare = jnp.where(rolling.spare < 0, rolling.spare, jnp.minimum(rolling.spare + num_new, rolling.most_new))
    is_token = jnp.arange(marked.capacity) < marked.num_tokens
    return marked._replace(is_token=is_token, rolling=rolling.replace(newest=newest, spare=spare))


def rolling_mask(cache: Any, mask: Mask) -> Mask:
    """The rest of `cache.newest_mask`: a token is in the slot of its position, padding in one that there is not.

    The position of a slot is that of the newest token that has been in it; below 0: there was none. A slot whose token
    was taken back is said to have the one before it. That one is lost, but behind the window.
    """
    newest, num_slots = cache.num_tokens - 1, cache.capacity
    return mask.replace(
        is_key=cache.is_token,
        key_positions=newest - (newest - jnp.arange(num_slots)) % num_slots,
        slots=jnp.where(mask.is_key, mask.query_positions % num_slots, num_slots),
    )


def rewind_rolling(cache: Any, num_places: jax.Array | int) -> Any:
    """The rest of `cache.rewind`: the newest places are taken back."""
    rolling, place = cache.rolling, jnp.arange(cache.rolling.most_new)
    is_gone = place >= rolling.most_new - num_places
    num_tokens = cache.num_tokens - jnp.sum(rolling.newest & is_gone, axis=1, keepdims=True, dtype=jnp.int32)
    newest = jnp.roll(rolling.newest, num_places, axis=1) & (place >= num_places)
    is_token = jnp.arange(cache.capacity) < num_tokens
    rolling = rolling.replace(newest=newest, spare=rolling.spare - num_places)
    return cache._replace(is_token=is_token, num_tokens=num_tokens, rolling=rolling)
