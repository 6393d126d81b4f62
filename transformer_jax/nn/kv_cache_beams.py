"""Beam cache: the W beams of a row share its slots, and each beam has a bit mask of the slots on its path.

At every step the beams of a row write W slots, one each. A beam that continues another one copies that one's bit mask;
no key or value moves: copying them for every token cost beam search more than attention itself. The prompt is stored
once for all beams.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from transformer_jax.nn.masks import Mask
from transformer_jax.nn.positions import token_positions


class BeamState(flax.struct.PyTreeNode):
    """Paths of the beams through the slots of their row."""

    on_path: jax.Array  # [B, W, S] bool: the slots of the beam's tokens, including the prompt's
    first_slot: jax.Array  # int32: the first slot after the prompt, written by a beam

    @property
    def num_beams(self) -> int:
        """Beams of a row, W."""
        return self.on_path.shape[1]

    def reordered(self, rows: jax.Array) -> "BeamState":
        """Gather beams: beam i of all [B W] continues beam `rows[i]`, which belongs to the same row of the cache."""
        B, W, S = self.on_path.shape
        return self.replace(on_path=self.on_path.reshape(B * W, S)[rows].reshape(B, W, S))


def with_beam_state(cache: Any, num_beams: int, capacity: int) -> Any:
    """Beam cache for `num_beams` continuations of each row of a full cache, which share at least `capacity` slots."""
    num_more = max(0, capacity - cache.capacity)
    layers = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, num_more), (0, 0))), cache.layers)
    is_token = jnp.pad(cache.is_token, ((0, 0), (0, num_more)))
    on_path = jnp.repeat(is_token[:, None], num_beams, axis=1)
    return cache._replace(layers=layers, is_token=is_token, beams=BeamState(on_path, cache.num_written))


def append_beams(cache: Any) -> Any:
    """Beam cache's part of `kv_cache.append`: reserve the next W slots, one for a token of each beam."""
    W = cache.beams.num_beams
    first = cache.num_written
    on_path = cache.beams.on_path
    own_slot = jnp.broadcast_to(jnp.eye(W, dtype=bool), (len(on_path), W, W))
    return cache._replace(
        num_tokens=cache.num_tokens + 1,
        num_written=first + W,
        is_token=jax.lax.dynamic_update_slice(cache.is_token, jnp.ones((len(on_path), W), bool), (0, first)),
        beams=cache.beams.replace(on_path=jax.lax.dynamic_update_slice(on_path, own_slot, (0, 0, first))),
    )


def beam_mask(cache: Any) -> Mask:
    """Attention mask of the W newest tokens of each row, after `append`: each attends to the path of its beam."""
    W = cache.beams.num_beams
    first = cache.beams.first_slot
    slot = jnp.arange(cache.capacity)
    num_steps = (cache.num_written - first) // W
    beam_positions = cache.num_tokens - num_steps + (slot - first) // W  # the W slots of a step share one position
    return Mask(
        may_attend=cache.beams.on_path,
        query_positions=jnp.repeat(cache.num_tokens - 1, W, axis=1),
        key_positions=jnp.where(slot < first, token_positions(cache.is_token), beam_positions),
        first_slot=cache.num_written - W,
        is_causal=True,
    )
