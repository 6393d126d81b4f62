"""Attention masks: boolean [B or 1, T, S], where True means that this query (row) may attend this key (column).

    causal, T = S = 4      padding (third key is padding)      both            causal, window 2
    1 . . .                1 1 . 1                             1 . . .         1 . . .
    1 1 . .                1 1 . 1                             1 1 . .         1 1 . .
    1 1 1 .                1 1 . 1                             1 1 . .         . 1 1 .
    1 1 1 1                1 1 . 1                             1 1 . 1         . . 1 1

`Mask` describes the picture by its parts, and any block of it can be computed from them: a blockwise backend never
needs all of [T, S]. A slot is an index into the row, padding included; a position counts tokens only.
"""

from typing import Any, NamedTuple, Self

import flax.struct
import jax
import jax.numpy as jnp


def _static(default: Any) -> Any:  # known when compiling, so that a backend can skip work
    return flax.struct.field(pytree_node=False, default=default)


class MaskFlags(NamedTuple):
    """A whole mask by two numbers that are known when compiling; kernels skip what such a mask hides."""

    is_causal: bool
    window: int  # of a causal mask, by slots; 0: no limit


class Mask(flax.struct.PyTreeNode):
    """Attention mask by its parts: a query may attend the keys that all parts allow (None, 0 or False: all keys).

    Queries and keys have slots and positions, both counted from the start of their row.
    """

    may_attend: jax.Array | None = None  # bool [B or 1, T or 1, S]: any other rule
    is_key: jax.Array | None = None  # bool [B, S]: keys that hold a token
    query_segments: jax.Array | None = None  # int [B, T]: texts packed into a row; a query attends its own text only
    key_segments: jax.Array | None = None  # int [B, S]
    query_positions: jax.Array | None = None  # int [B or 1, T]; None: slots
    key_positions: jax.Array | None = None  # int [B or 1, S]; None: slots
    first_slot: jax.Array | int = 0  # slot of the first query: with a cache, the number of slots already written
    is_causal: bool = _static(False)  # keys up to the query's own slot
    is_by_position: bool = _static(False)  # causal by positions, not by slots, which a rolling cache uses again
    window: int = _static(0)  # keys at a smaller distance only (in both directions, unless causal); 0: no limit

    def query_positions_at(self, first: jax.Array | int, num: int) -> jax.Array:
        """Positions of `num` queries starting at index `first`, [B or 1, num]."""
        if self.query_positions is None:
            return (self.first_slot + first + jnp.arange(num))[None]
        return slice_axis(self.query_positions, 1, first, num)

    def key_positions_at(self, first: jax.Array | int, num: int) -> jax.Array:
        """Positions of `num` keys starting at index `first`, [B or 1, num]."""
        if self.key_positions is None:
            return (first + jnp.arange(num))[None]
        return slice_axis(self.key_positions, 1, first, num)

    def block(self, first_query: jax.Array | int, T: int, first_key: jax.Array | int, S: int) -> jax.Array | None:
        """Compute the mask for T queries and S keys: bool [B or 1, T or 1, S], or None where all of it is True."""
        parts = []
        if self.may_attend is not None:
            is_one_row = self.may_attend.shape[1] == 1
            rows = self.may_attend if is_one_row else slice_axis(self.may_attend, 1, first_query, T)
            parts.append(slice_axis(rows, 2, first_key, S))
        if self.is_key is not None:
            parts.append(padding(slice_axis(self.is_key, 1, first_key, S)))
        if self.query_segments is not None:
            assert self.key_segments is not None
            of_queries = slice_axis(self.query_segments, 1, first_query, T)
            of_keys = slice_axis(self.key_segments, 1, first_key, S)
            parts.append(of_queries[:, :, None] == of_keys[:, None])
        if self.is_causal and not self.is_by_position:
            parts.append(causal(T, S, self.first_slot + first_query - first_key))
        if self.window or self.is_by_position:
            query_positions = self.query_positions_at(first_query, T)
            distance = query_positions[:, :, None] - self.key_positions_at(first_key, S)[:, None]
            if self.window:
                parts.append(jnp.abs(distance) < self.window)
            if self.is_causal and self.is_by_position:
                parts.append(distance >= 0)
        combined = None
        for part in parts:
            combined = part if combined is None else combined & part
        return combined

    def split_causality(self, T: int, S: int) -> tuple[bool, Self]:
        """Split off causality if a flag can express it: queries and keys are the same T = S slots.

        Returns:
          True if it can, and the mask of all other parts; False, and the mask as it is.
        """
        is_same = isinstance(self.first_slot, int) and self.first_slot == 0 and T == S
        is_flag = self.is_causal and not self.is_by_position and is_same
        return is_flag, self.replace(is_causal=False) if is_flag else self

    def as_flags(self, T: int, S: int) -> MaskFlags | None:
        """Return the mask of T queries and S keys as flags, or None if it has parts that need an array."""
        is_causal, rest = self.split_causality(T, S)
        has_array = any(part is not None for part in (self.may_attend, self.is_key, self.query_segments))
        if has_array or rest.is_causal:
            return None
        has_positions = self.query_positions is not None or self.key_positions is not None
        if self.window and (has_positions or not is_causal):
            return None
        return MaskFlags(is_causal, self.window)

    def padded(self, T: int, S: int, more_queries: int, more_keys: int) -> "Mask":
        """The mask for T queries and S keys, padded at the end with queries and keys that hold no token."""

        def pad(x, axis, num, more):
            return x if x is None or x.shape[axis] < num else _pad_end(x, axis, more)

        is_key = jnp.ones((1, S), bool) if self.is_key is None and more_keys else self.is_key
        return self.replace(
            may_attend=pad(pad(self.may_attend, 1, max(T, 2), more_queries), 2, S, more_keys),
            is_key=pad(is_key, 1, S, more_keys),
            query_segments=pad(self.query_segments, 1, T, more_queries),
            key_segments=pad(self.key_segments, 1, S, more_keys),
            query_positions=pad(self.query_positions, 1, T, more_queries),
            key_positions=pad(self.key_positions, 1, S, more_keys),
        )


def causal(num_queries: int, num_keys: int, first_slot: jax.Array | int = 0) -> jax.Array:
    """Causal mask, keys up to and including the query's own slot: bool [1, T, S].

    Args:
      first_slot: the slot of the first query, counted from the first key's.
    """
    query_slot = first_slot + jnp.arange(num_queries)
    return (jnp.arange(num_keys) <= query_slot[:, None])[None]


def padding(is_token: jax.Array) -> jax.Array:
    """Padding mask, keys that are tokens, from `is_token` [B, S]: bool [B, 1, S]."""
    return is_token[:, None, :]


def slice_axis(x: jax.Array, axis: int, first: jax.Array | int, num: int) -> jax.Array:
    """Slice `num` entries of an axis starting at `first`, which may be known only at run time."""
    return x if x.shape[axis] == num else jax.lax.dynamic_slice_in_dim(x, first, num, axis)


def _pad_end(x: jax.Array, axis: int, more: int) -> jax.Array:
    return jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)])
