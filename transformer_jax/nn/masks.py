"""Which keys a query may attend. Boolean [B or 1, T, S]; True means: this query (row) may attend this key (column).

    causal, T = S = 4      padding (third key is padding)      both            causal, window 2
    1 . . .                1 1 . 1                             1 . . .         1 . . .
    1 1 . .                1 1 . 1                             1 1 . .         1 1 . .
    1 1 1 .                1 1 . 1                             1 1 . .         . 1 1 .
    1 1 1 1                1 1 . 1                             1 1 . 1         . . 1 1

`Mask` says it in parts, from which any block of the picture can be drawn: a backend that works in blocks never
needs the whole [T, S]. A slot is a place in the row, padding included; a position counts tokens only.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


def _static(default: Any) -> Any:  # known when compiling, so that a backend can skip work
    return flax.struct.field(pytree_node=False, default=default)


@flax.struct.dataclass
class Mask:
    """Keys that every part allows (None, 0 or False: all of them), and where queries and keys stand."""

    may_attend: jax.Array | None = None  # bool [B or 1, T or 1, S]: any other rule
    is_key: jax.Array | None = None  # bool [B, S]: keys that hold a token
    query_segments: jax.Array | None = None  # int [B, T]: texts packed into a row; a query sees its own text only
    key_segments: jax.Array | None = None  # int [B, S]
    query_positions: jax.Array | None = None  # int [B or 1, T]; None: slots
    key_positions: jax.Array | None = None  # int [B or 1, S]; None: slots
    first_slot: jax.Array | int = 0  # slot of the first query: with a cache, the number of slots already written
    slots: jax.Array | None = None  # int [B, T]: the queries' own slots, where they do not follow each other: in a ring
    is_causal: bool = _static(False)  # keys up to the query's own slot; in a ring, up to its position
    window: int = _static(0)  # keys at a distance below it (either way, unless causal); 0: any

    def queries(self, first: jax.Array | int, num: int) -> jax.Array:
        """Positions of `num` queries from the `first` on, [B or 1, num]."""
        if self.query_positions is None:
            return (self.first_slot + first + jnp.arange(num))[None]
        return cut(self.query_positions, 1, first, num)

    def keys(self, first: jax.Array | int, num: int) -> jax.Array:
        """Positions of `num` keys from the `first` on, [B or 1, num]."""
        return (first + jnp.arange(num))[None] if self.key_positions is None else cut(self.key_positions, 1, first, num)

    def block(self, first_query: jax.Array | int, T: int, first_key: jax.Array | int, S: int) -> jax.Array | None:
        """The picture of T queries and S keys: bool [B or 1, T or 1, S], or None where all of it is True."""
        parts = []
        if self.may_attend is not None:
            rows = self.may_attend if self.may_attend.shape[1] == 1 else cut(self.may_attend, 1, first_query, T)
            parts.append(cut(rows, 2, first_key, S))
        if self.is_key is not None:
            parts.append(padding(cut(self.is_key, 1, first_key, S)))
        if self.query_segments is not None:
            own, other = cut(self.query_segments, 1, first_query, T), cut(self.key_segments, 1, first_key, S)
            parts.append(own[:, :, None] == other[:, None])
        if self.is_causal and self.slots is None:
            parts.append(causal(T, S, self.first_slot + first_query - first_key))
        if self.window or self.slots is not None:
            distance = self.queries(first_query, T)[:, :, None] - self.keys(first_key, S)[:, None]
            if self.window:
                parts.append(jnp.abs(distance) < self.window)
            if self.is_causal and self.slots is not None:
                parts.append(distance >= 0)
        both = None
        for part in parts:
            both = part if both is None else both & part
        return both

    def padded(self, T: int, S: int, more_queries: int, more_keys: int) -> "Mask":
        """The same for arrays that got more queries and keys at the end, which are no tokens."""

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
    """Keys up to and including the query's own slot: [1, T, S].

    Args:
      first_slot: the slot of the first query, counted from the first key's.
    """
    query_slot = first_slot + jnp.arange(num_queries)
    return (jnp.arange(num_keys) <= query_slot[:, None])[None]


def padding(is_token: jax.Array) -> jax.Array:
    """Keys that are tokens, from `is_token` [B, S]: [B, 1, S]."""
    return is_token[:, None, :]


def cut(x: jax.Array, axis: int, first: jax.Array | int, num: int) -> jax.Array:
    """`num` entries of an axis from `first` on, where `first` may be known only at run time."""
    return x if x.shape[axis] == num else jax.lax.dynamic_slice_in_dim(x, first, num, axis)


def _pad_end(x: jax.Array, axis: int, more: int) -> jax.Array:
    return jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)])
