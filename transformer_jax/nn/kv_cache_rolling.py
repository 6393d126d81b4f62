"""Rolling KV cache: slots by position, for texts of any length and a model with a sliding window.

Jiang et al. 2023, section 2. Without a window, in a model whose texts fit, no slot is used twice.
"""

from typing import Self

import flax.struct
import jax
import jax.numpy as jnp

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.nn.kv_cache import KeysValues, KVCache, tokens_before
from transformer_jax.nn.kv_cache_full import FullCache
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.positions import token_positions


class RollingCache(KVCache, kw_only=True):
    """Rolling cache: the token at position p of a row is in slot p modulo S.

    Padding gets no slot, so the number of tokens of a row alone determines the contents of its slots. A new token
    overwrites the one S positions before it, which no query of the same call may attend: S = window + max_new - 1.
    """

    newest: jax.Array  # [B, max_new] bool: True for tokens among the last max_new inputs, oldest first
    spare: jax.Array  # int32: number of inputs that can be removed; below 0: too many were, and keys are lost
    window: int = flax.struct.field(pytree_node=False)

    @classmethod
    def empty(cls, config: TransformerConfig, batch_size: int, capacity: int) -> "RollingCache":
        """Rolling cache of `capacity` slots: window + max_new - 1 of them for at most max_new tokens in a call."""
        full = FullCache.empty(config, batch_size, capacity)
        max_new = capacity - max(config.window, 1) + 1
        return cls(
            layers=full.layers,
            is_token=full.is_token,
            num_tokens=full.num_tokens,
            num_written=full.num_written,
            newest=jnp.zeros((batch_size, max_new), bool),
            spare=jnp.int32(0),
            window=config.window,
        )

    @property
    def max_new(self) -> int:
        """Maximum number of inputs in one call, and of inputs that can be removed again."""
        return self.newest.shape[1]

    @property
    def is_overrun(self) -> jax.Array | bool:
        """True if keys were lost: too many inputs removed or, without a window, a text longer than the slots."""
        is_lost = self.spare < 0
        return is_lost if self.window else is_lost | jnp.any(self.num_tokens > self.capacity)

    def append(self, is_token: jax.Array) -> Self:
        """Count the newest tokens, which go to the slots of their positions: see KVCache."""
        num_new = is_token.shape[1]
        if num_new > self.max_new:
            raise UserError(
                f"cache: {num_new} new tokens at once, where the rolling cache was made for {self.max_new}: they would "
                "overwrite keys inside the window. Feed fewer at a time, or make a cache with a larger max_new."
            )
        newest = jnp.concatenate([self.newest, is_token], axis=1)[:, num_new:]
        spare = jnp.where(self.spare < 0, self.spare, jnp.minimum(self.spare + num_new, self.max_new))
        return self.count(is_token)._with_newest(newest, spare)

    def mask(self, is_token: jax.Array) -> Mask:
        """Causal mask of the newest tokens, by positions: see KVCache.

        The position of a slot is that of the newest token written there; below 0: none was. A slot whose token was
        removed by `rewind` counts as holding the token before it. That one is lost, but outside the window.
        """
        newest = self.num_tokens - 1
        num_slots = self.capacity
        return Mask(
            is_key=self.is_token,
            query_positions=token_positions(is_token, tokens_before(self, is_token)),
            key_positions=newest - (newest - jnp.arange(num_slots)) % num_slots,
            first_slot=self.num_written - is_token.shape[1],
            is_causal=True,
            is_by_position=True,
        )

    def write(self, layer: int, k_BTKH: jax.Array, v_BTKH: jax.Array) -> Self:
        """Store keys and values in the slots of their positions; those of padding are dropped."""
        is_token = self.newest[:, self.max_new - k_BTKH.shape[1] :]
        positions = token_positions(is_token, tokens_before(self, is_token))
        slots = jnp.where(is_token, positions % self.capacity, self.capacity)  # the slot after the last one: none

        def put(old: jax.Array, new: jax.Array) -> jax.Array:
            slots_of_heads = jnp.repeat(slots, len(old) // len(slots), axis=0)
            return old.at[jnp.arange(len(old))[:, None], slots_of_heads].set(new, mode="drop")

        return self.with_layer(layer, self.layers[layer].update(KeysValues.from_projections(k_BTKH, v_BTKH), put))

    def rewind(self, num: jax.Array | int) -> Self:
        """Remove the newest `num` inputs of every row: see KVCache."""
        if not isinstance(num, jax.core.Tracer) and not isinstance(self.spare, jax.core.Tracer):
            if not 0 <= num <= self.spare:
                rule = f"must be from 0 to {self.spare}, the slots that the rolling cache can restore"
                raise UserError(f"num={num}: {rule}.")
        index = jnp.arange(self.max_new)
        is_removed = index >= self.max_new - num
        num_tokens = self.num_tokens - jnp.sum(self.newest & is_removed, axis=1, keepdims=True, dtype=jnp.int32)
        newest = jnp.roll(self.newest, num, axis=1) & (index >= num)
        rewound = self.replace(num_tokens=num_tokens, num_written=self.num_written - num)
        return rewound._with_newest(newest, self.spare - num)

    def accept_prefix(self, lengths: jax.Array, num_newest: int) -> Self:
        """Keep a prefix of each row's newest tokens: see KVCache. Inputs that no row keeps are rewound."""
        num_removed = num_newest - jnp.max(lengths)
        rewound = self.rewind(num_removed)
        # Input j of the newest is at index max_new - num_newest + num_removed + j now.
        first = self.max_new - num_newest + num_removed
        index = jnp.arange(self.max_new)
        is_kept = rewound.newest & ((index < first) | (index < first + lengths[:, None]))
        num_tokens = rewound.num_tokens - jnp.sum(rewound.newest & ~is_kept, axis=1, keepdims=True, dtype=jnp.int32)
        return rewound.replace(num_tokens=num_tokens)._with_newest(is_kept, rewound.spare)

    def clear(self, rows: jax.Array) -> Self:
        """Remove all tokens of some rows, whose slots are free again: see KVCache."""
        cleared = self.replace(num_tokens=self.num_tokens.at[rows].set(0))
        return cleared._with_newest(self.newest.at[rows].set(False), self.spare)

    def _with_newest(self, newest: jax.Array, spare: jax.Array) -> Self:
        return self.replace(is_token=jnp.arange(self.capacity) < self.num_tokens, newest=newest, spare=spare)
