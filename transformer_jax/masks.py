"""Boolean masks [B or 1, T, S]; True means: this query (row) may attend this key (column).

    causal, T = S = 4      padding (third key is padding)      both
    1 . . .                1 1 . 1                             1 . . .
    1 1 . .                1 1 . 1                             1 1 . .
    1 1 1 .                1 1 . 1                             1 1 . .
    1 1 1 1                1 1 . 1                             1 1 . 1

Masks compose with `&`. Queries and keys are compared by slot, their place in the row, so padding on
either side needs no special case.
"""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Mask:
    """Which keys each query may attend: those that both fields allow."""

    may_attend: jax.Array | None = None  # bool [B or 1, T or 1, S]; None: all
    # Up to the query's own place. Said by name and known when compiling, it lets half of the work be skipped.
    is_causal: bool = flax.struct.field(pytree_node=False, default=False)


def causal(num_queries: int, num_keys: int, first_slot: jax.Array | int = 0) -> jax.Array:
    """Keys up to and including the query's own slot: [1, T, S].

    Args:
      first_slot: the slot of the first query; with a cache, the number of slots already written.
    """
    query_slot = first_slot + jnp.arange(num_queries)
    return (jnp.arange(num_keys) <= query_slot[:, None])[None]


def padding(is_token: jax.Array) -> jax.Array:
    """Keys that are tokens, from `is_token` [B, S]: [B, 1, S]."""
    return is_token[:, None, :]
