"""A forked cache: W beams of a row share its slots, and each has a mark on those that it has been through.

At every step the beams of a row write W slots, one each. A beam that goes on from another takes over its marks, and no
key or value is moved: to copy them for every token cost beam search more than attention itself. The prompt is there
once for all beams.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from transformer_jax.nn.masks import Mask
from transformer_jax.nn.positions import count_tokens


@flax.struct.dataclass
class BeamState:
    """Which beam has been through which slot."""

    seen: jax.Array  # [B, W, S] bool: the slots of the beam's tokens, the prompt's among them
    first: jax.Array  # int32: the first slot that was written by a beam

    @property
    def num_beams(self) -> int:
        """Beams of a row, W."""
        return self.seen.shape[1]

    def reordered(self, rows: jax.Array) -> "BeamState":
        """Beam i of all [B W] goes on from beam `rows[i]`, which is of the same row of the cache."""
        B, W, S = self.seen.shape
        return self.replace(seen=self.seen.reshape(B * W, S)[rows].reshape(B, W, S))


def fork(cache: Any, num_beams: int, capacity: int) -> Any:
    """The cache for `num_beams` continuations of each row, with `capacity` slots or more for all of them."""
    more = max(0, capacity - cache.capacity)
    layers = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, more), (0, 0))), cache.layers)
    is_token = jnp.pad(cache.is_token, ((0, 0), (0, more)))
    seen = jnp.repeat(is_token[:, None], num_beams, axis=1)
    return cache._replace(layers=layers, is_token=is_token, beams=BeamState(seen, cache.num_written))


def append_beams(cache: Any) -> Any:
    """The rest of `kv_cache.append`: the next W slots hold a token of each beam."""
    W, slot = cache.beams.num_beams, cache.num_written
    seen = cache.beams.seen
    own = jnp.broadcast_to(jnp.eye(W, dtype=bool), (len(seen), W, W))
    return cache._replace(
        num_tokens=cache.num_tokens + 1,
        num_written=slot + W,
        is_token=jax.lax.dynamic_update_slice(cache.is_token, jnp.ones((len(seen), W), bool), (0, slot)),
        beams=cache.beams.replace(seen=jax.lax.dynamic_update_slice(seen, own, (0, 0, slot))),
    )


def beam_mask(cache: Any) -> Mask:
    """Of the W newest tokens of each row, after `append`: each sees what its beam has been through, and itself."""
    W, first = cache.beams.num_beams, cache.beams.first
    slot, num_steps = jnp.arange(cache.capacity), (cache.num_written - first) // W
    of_beams = (
        cache.num_tokens - num_steps + (slot - first) // W
    )  # all that are written at a step stand at one position
    return Mask(
        may_attend=cache.beams.seen,
        query_positions=jnp.repeat(cache.num_tokens - 1, W, axis=1),
        key_positions=jnp.where(slot < first, count_tokens(cache.is_token), of_beams),
        first_slot=cache.num_written - W,
        is_causal=True,
    )
