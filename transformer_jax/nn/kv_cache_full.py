"""Full KV cache: one slot for every token and for padding, in the order in which they came."""

from typing import NoReturn, Self

import jax
import jax.numpy as jnp

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.nn.kv_cache import KeysValues, KVCache, tokens_before
from transformer_jax.nn.kv_cache_beams import BeamCache
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.positions import token_positions


class FullCache(KVCache):
    """Full cache: the rows share the slot numbers, so the newest tokens of all rows are in the same slots."""

    @classmethod
    def empty(cls, config: TransformerConfig, batch_size: int, capacity: int) -> "FullCache":
        """Full cache for `batch_size` rows of at most `capacity` slots, padding included."""
        zeros = jnp.zeros((batch_size, capacity, config.num_kv_heads, config.head_dim), config.dtype)
        return cls(
            layers=(KeysValues.from_projections(zeros, zeros),) * config.num_layers,
            is_token=jnp.zeros((batch_size, capacity), bool),
            num_tokens=jnp.zeros((batch_size, 1), jnp.int32),
            num_written=jnp.int32(0),
        )

    def append(self, is_token: jax.Array) -> Self:
        """Reserve the next T slots of every row: see KVCache."""
        num_new = is_token.shape[1]
        error = f"cache: {num_new} new slots do not fit into capacity={self.capacity}"
        if num_new > self.capacity:
            raise UserError(f"{error}. Make a larger cache, or feed fewer tokens.")
        if not isinstance(self.num_written, jax.core.Tracer) and self.num_written + num_new > self.capacity:
            raise UserError(f"{error} with {self.num_written} already written. Make a larger cache.")
        slots = jax.lax.dynamic_update_slice(self.is_token, is_token, (0, self.num_written))
        return self.count(is_token).replace(is_token=slots)

    def mask(self, is_token: jax.Array) -> Mask:
        """Causal mask of the newest tokens over all slots: see KVCache."""
        return Mask(
            is_key=self.is_token,
            query_positions=token_positions(is_token, tokens_before(self, is_token)),
            key_positions=token_positions(self.is_token),
            first_slot=self.num_written - is_token.shape[1],
            is_causal=True,
        )

    def rewind(self, num: jax.Array | int) -> Self:
        """Free the newest `num` slots of every row: see KVCache."""
        if not isinstance(num, jax.core.Tracer) and not isinstance(self.num_written, jax.core.Tracer):
            if not 0 <= num <= self.num_written:
                raise UserError(f"num={num}: must be from 0 to {self.num_written}, the slots written.")
        num_written = self.num_written - num
        return self._keep_tokens(jnp.arange(self.capacity) < num_written).replace(num_written=num_written)

    def accept_prefix(self, lengths: jax.Array, num_newest: int) -> Self:
        """Keep a prefix of each row's newest tokens: see KVCache.

        Slots that no row keeps are free again; slots that only some rows keep become padding in the others.
        """
        end = self.num_written - num_newest + lengths[:, None]
        rewound = self.rewind(num_newest - jnp.max(lengths))
        return rewound._keep_tokens(jnp.arange(self.capacity) < end)

    def clear(self, rows: jax.Array) -> Self:
        """Turn the tokens of some rows into padding: see KVCache. Their slots are not free again."""
        return self.replace(is_token=self.is_token.at[rows].set(False), num_tokens=self.num_tokens.at[rows].set(0))

    def with_capacity(self, capacity: int) -> Self:
        """The cache with empty slots at the end, up to `capacity`."""
        num_more = max(0, capacity - self.capacity)
        return self.replace(
            layers=jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, num_more), (0, 0))), self.layers),
            is_token=jnp.pad(self.is_token, ((0, 0), (0, num_more))),
        )

    def insert(self, rows: jax.Array, other: Self) -> NoReturn:
        """Raise UserError: all rows share the slot numbers."""
        raise UserError("cache: the rows of a full cache share their slots. Take a rolling cache, to insert rows.")

    def expand(self, num: int, capacity: int = 0) -> BeamCache:
        """Cache of `num` continuations of each row that share its slots, `capacity` or more: no key is copied."""
        larger = self.with_capacity(capacity)
        return BeamCache(
            layers=larger.layers,
            is_token=larger.is_token,
            num_tokens=self.num_tokens,
            num_written=self.num_written,
            source=self.source,
            rows_per_source=num * self.rows_per_source,
            on_path=jnp.repeat(larger.is_token[:, None], num, axis=1),
            first_slot=self.num_written,
        )

    def _keep_tokens(self, is_kept: jax.Array) -> Self:
        """Remove the tokens of all slots where `is_kept` [B or 1, S] is False."""
        num_removed = jnp.sum(self.is_token & ~is_kept, axis=1, keepdims=True, dtype=jnp.int32)
        return self.replace(is_token=self.is_token & is_kept, num_tokens=self.num_tokens - num_removed)
