"""Beam KV cache: the W continuations of a row share its slots, and each has a bit mask of the slots on its path.

At every step the beams of a row write W slots, one each. A beam that continues another one copies that one's bit mask;
no key or value moves: copying them for every token cost beam search more than attention itself. The prompt is stored
once for all beams.
"""

from typing import NoReturn, Self

import jax
import jax.numpy as jnp

from transformer_jax.errors import UserError
from transformer_jax.nn.kv_cache import KVCache
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.positions import token_positions


class BeamCache(KVCache, kw_only=True):
    """Beam cache: W continuations of each row of a full cache, from its `expand`; each step adds a token to each."""

    on_path: jax.Array  # [B, W, S] bool: the slots of the beam's tokens, and those of the prompt
    first_slot: jax.Array  # int32: the first slot after the prompt, written by a beam

    @property
    def num_beams(self) -> int:
        """Beams of a row, W."""
        return self.on_path.shape[1]

    def append(self, is_token: jax.Array) -> Self:
        """Reserve the next W slots of every row, one for a token of each beam; `is_token` [B, W] is not read."""
        W = self.num_beams
        first = self.num_written
        own_slot = jnp.broadcast_to(jnp.eye(W, dtype=bool), (self.num_rows, W, W))
        return self.replace(
            num_tokens=self.num_tokens + 1,
            num_written=first + W,
            is_token=jax.lax.dynamic_update_slice(self.is_token, jnp.ones((self.num_rows, W), bool), (0, first)),
            on_path=jax.lax.dynamic_update_slice(self.on_path, own_slot, (0, 0, first)),
        )

    def mask(self, is_token: jax.Array) -> Mask:
        """Attention mask of the W newest tokens of each row: each attends to the path of its beam."""
        W = self.num_beams
        first = self.first_slot
        slot = jnp.arange(self.capacity)
        num_steps = (self.num_written - first) // W
        beam_positions = self.num_tokens - num_steps + (slot - first) // W  # the W slots of a step share one position
        return Mask(
            may_attend=self.on_path,
            query_positions=jnp.repeat(self.num_tokens - 1, W, axis=1),
            key_positions=jnp.where(slot < first, token_positions(self.is_token), beam_positions),
            first_slot=self.num_written - W,
            is_causal=True,
        )

    def reorder(self, rows: jax.Array) -> Self:
        """Gather beams: beam i of all [B W] continues beam `rows[i]`, which belongs to the same row of the cache."""
        B, W, S = self.on_path.shape
        return self.replace(on_path=self.on_path.reshape(B * W, S)[rows].reshape(B, W, S))

    def rewind(self, num: jax.Array | int) -> NoReturn:
        """Raise UserError: the tokens of a step are on the paths of several beams."""
        raise UserError("cache: holds beams, which share slots, so none can be removed. Rewind before `expand`.")

    def accept_prefix(self, lengths: jax.Array, num_newest: int) -> NoReturn:
        """Raise UserError, as `rewind`."""
        self.rewind(num_newest)

    def clear(self, rows: jax.Array) -> NoReturn:
        """Raise UserError: beams of a row share the length of its text."""
        raise UserError("cache: holds beams, which share slots, so no row can start again. Clear before `expand`.")

    def expand(self, num: int, capacity: int = 0) -> NoReturn:
        """Raise UserError: its rows are expanded already."""
        raise UserError("cache: holds beams already. Call `expand` once, with the number of all continuations.")
