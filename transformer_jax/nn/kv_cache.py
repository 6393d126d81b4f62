"""KV cache for incremental decoding: the keys and values of all tokens so far, as an explicit pytree.

A full cache has one slot for every token (and for padding); a model with a sliding window can have a rolling cache
(kv_cache_rolling.py); the beams of beam search share the slots of a row (kv_cache_beams.py). The cache is an argument
and a result of `extend`; no module holds state. Layers are separate arrays, not one stacked [L, ...]: on a CPU a
decode step over a stacked cache took more than twice as long.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError, choose
from transformer_jax.nn import linear_attention
from transformer_jax.nn.kv_cache_beams import BeamState, append_beams, beam_mask, with_beam_state
from transformer_jax.nn.kv_cache_rolling import RollingState, append_rolling, rewind_rolling, rolling_mask
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.positions import token_positions
from transformer_jax.nn.quantization import Int8, dequantize, to_int8


class KVCache(NamedTuple):
    """Keys and values of one layer, [B K, S, H] each: the layout that the products of attention read.

    With another order of axes, or with four axes, XLA on a CPU copied all of them at every step. An Int8 has one scale
    for each vector.
    """

    keys: jax.Array | Int8
    values: jax.Array | Int8

    @classmethod
    def from_projections(cls, k_BSKH: jax.Array, v_BSKH: jax.Array) -> "KVCache":
        """KV cache of keys and values in the layout of the projections."""
        return cls(by_head(k_BSKH), by_head(v_BSKH))

    def read(self, num_heads: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
        """Keys and values [B, S, K, H] of type `dtype` for `attend`; not copied if they have this type already."""

        def by_row(x):
            return x.reshape(-1, num_heads, *x.shape[1:]).swapaxes(1, 2)

        return by_row(dequantize(self.keys, dtype)), by_row(dequantize(self.values, dtype))


def by_head(x_BSKH: jax.Array) -> jax.Array:
    """Reshape [B, S, K, H] -> [B K, S, H]."""
    B, S, K, H = x_BSKH.shape
    return x_BSKH.swapaxes(1, 2).reshape(B * K, S, H)


class EncodedSource(NamedTuple):
    """Encoded source for cross-attention: keys and values of every layer, and the slots that hold tokens.

    It has B rows where the rest of the cache has B W: beams 0 to W - 1 of row 0 first, then those of row 1.
    """

    layers: tuple[KVCache, ...]
    is_token: jax.Array  # [B, source length] bool


class DecodeCache(NamedTuple):
    """Decoding state of a whole model: the KV cache of every layer, and the contents of the slots."""

    layers: tuple[Any, ...]  # KVCache, or LinearState, which has no slots
    is_token: jax.Array  # [B, S] bool: slots that hold a token, not padding and not empty; S = 0 without slots
    num_tokens: jax.Array  # int32 [B, 1]: tokens (not padding) so far, the position of the next one
    num_written: jax.Array  # int32: tokens and padding so far, the same for every row; the slots in use of a full cache
    source: EncodedSource | None = None
    rolling: RollingState | None = None
    beams: BeamState | None = None

    @property
    def capacity(self) -> int:
        """Number of slots, S."""
        return self.is_token.shape[1]


def make_cache(config: TransformerConfig, batch_size: int, capacity: int, extra_slots: int = 0) -> DecodeCache:
    """Empty KV cache for `batch_size` rows of at most `capacity` slots, padding included.

    Linear attention keeps a state of constant size, so its cache has no slots and is never full.

    Args:
      extra_slots: more slots, for tokens that are removed again: rejected drafts.
    Raises:
      UserError: capacity above model.max_len.
    """
    if capacity > config.max_len:
        raise UserError(f"cache capacity={capacity}: must be at most model.max_len={config.max_len}.")
    return _empty_cache(config, batch_size, capacity + extra_slots)


def make_rolling_cache(config: TransformerConfig, batch_size: int, max_new: int) -> DecodeCache:
    """Empty rolling cache, for a model with a sliding window and texts of any length, also past max_len.

    Linear attention gets its state, which has constant size anyway.

    Args:
      max_new: maximum number of tokens in one call of `extend`; the cache has window + max_new - 1 slots.
    Raises:
      UserError: the model cannot decode past max_len (see `overflow_error`); max_new below 1.
    """
    if error := overflow_error(config):
        raise UserError(error)
    if max_new < 1:
        raise UserError(f"max_new={max_new}: must be at least 1.")
    if config.attention == "linear":
        return _empty_cache(config, batch_size, 0)
    rolling = RollingState(jnp.zeros((batch_size, max_new), bool), jnp.int32(0), config.window)
    return _empty_cache(config, batch_size, config.window + max_new - 1)._replace(rolling=rolling)


def overflow_error(config: TransformerConfig) -> str | None:
    """Return an error message if this config cannot decode past max_len in constant memory, else None."""
    if config.attention != "linear" and not config.window:
        return (
            "model.window=0: every token attends to all before it, so tokens past the context have no slots. Take "
            "on_overflow=re-prefill, or a model with a window or with linear attention."
        )
    if config.positions in ("learned", "sinusoidal"):
        return (
            f"model.positions={config.positions!r}: end with the context, {config.max_len} tokens. Take "
            "on_overflow=re-prefill, or a model whose positions continue: rotary, t5, alibi, shaw or none."
        )
    return None


def _empty_cache(config: TransformerConfig, batch_size: int, capacity: int) -> DecodeCache:
    layer: KVCache | linear_attention.LinearState
    if config.attention == "linear":
        layer = linear_attention.empty_state(batch_size, config.num_kv_heads, config.head_dim)
        capacity = 0
    else:
        zeros = jnp.zeros((batch_size, capacity, config.num_kv_heads, config.head_dim), config.dtype)
        layer = KVCache.from_projections(zeros, zeros)
    return DecodeCache(
        layers=(layer,) * config.num_layers,
        is_token=jnp.zeros((batch_size, capacity), bool),
        num_tokens=jnp.zeros((batch_size, 1), jnp.int32),
        num_written=jnp.int32(0),
    )


CACHE_TYPES: dict[str, Callable[[jax.Array | Int8], jax.Array | Int8] | None] = {
    "model": None,  # the type that the model computes in
    "float32": lambda x: dequantize(x, jnp.float32),
    "bfloat16": lambda x: dequantize(x, jnp.bfloat16),
    "int8": lambda x: to_int8(dequantize(x, jnp.float32)),
}


def as_type(cache: DecodeCache, cache_type: str) -> DecodeCache:
    """Convert the keys and values to another type, a name in CACHE_TYPES; the computation's type does not change.

    Raises:
      UserError: an unknown type, or linear attention, whose sums need float32.
    """
    convert = choose(CACHE_TYPES, cache_type, "cache_type")
    if convert is None:
        return cache
    if not has_slots(cache):
        raise UserError(f"cache_type={cache_type!r}: linear attention keeps sums, in float32. Take cache_type=model.")
    return cache._replace(layers=tuple(KVCache(*map(convert, layer)) for layer in cache.layers))


def write(layer: KVCache, k_BTKH: jax.Array, v_BTKH: jax.Array, slots: jax.Array | int) -> KVCache:
    """Write keys and values into consecutive slots starting at `slots`, or into the given `slots` [B, T].

    Tokens whose given slot is beyond the last one are dropped.
    """

    def put(old, new):  # [B K, S, H or 1], [B K, T, H or 1]
        new = new.astype(old.dtype)
        if jnp.ndim(slots) == 0:
            return jax.lax.dynamic_update_slice(old, new, (0, slots, 0))
        slots_of_heads = jnp.repeat(slots, len(old) // len(slots), axis=0)
        return old.at[jnp.arange(len(old))[:, None], slots_of_heads].set(new, mode="drop")

    keys = by_head(k_BTKH)
    values = by_head(v_BTKH)
    is_int8 = isinstance(layer.keys, Int8)
    new = KVCache(to_int8(keys), to_int8(values)) if is_int8 else KVCache(keys, values)
    return jax.tree.map(put, layer, new)


def append(cache: DecodeCache, is_token: jax.Array) -> DecodeCache:
    """Reserve the next slots for T tokens, `is_token` [B, T]; `write` then stores their keys and values, by layer.

    Raises:
      UserError: the slots end before the new tokens do (only where `num_written` is known, outside jit;
        inside, `extend` returns NaN logits instead: JAX would silently overwrite the last slots). A rolling cache:
        more tokens at once than its max_new.
    """
    if cache.beams:
        return append_beams(cache)
    num_new = is_token.shape[1]
    num_tokens = cache.num_tokens + jnp.sum(is_token, axis=1, keepdims=True, dtype=jnp.int32)
    counted = cache._replace(num_tokens=num_tokens, num_written=cache.num_written + num_new)
    if not has_slots(cache):
        return counted
    if cache.rolling:
        return append_rolling(counted, is_token)
    error = f"cache: {num_new} new slots do not fit into capacity={cache.capacity}"
    if num_new > cache.capacity:
        raise UserError(f"{error}. Make a larger cache, or feed fewer tokens.")
    if not isinstance(cache.num_written, jax.core.Tracer) and cache.num_written + num_new > cache.capacity:
        raise UserError(f"{error} with {cache.num_written} already written. Make a larger cache.")
    return counted._replace(is_token=jax.lax.dynamic_update_slice(cache.is_token, is_token, (0, cache.num_written)))


def newest_mask(cache: DecodeCache, is_token: jax.Array) -> Mask:
    """Attention mask of the newest tokens, for the `is_token` [B, T] that was just passed to `append`."""
    if cache.beams:
        return beam_mask(cache)
    num_before = cache.num_tokens - jnp.sum(is_token, axis=1, keepdims=True, dtype=jnp.int32)
    mask = Mask(
        is_key=is_token,
        query_positions=token_positions(is_token, num_before),
        first_slot=cache.num_written - is_token.shape[1],
        is_causal=True,
    )
    if cache.rolling:
        return rolling_mask(cache, mask)
    if has_slots(cache):
        return mask.replace(is_key=cache.is_token, key_positions=token_positions(cache.is_token))
    return mask


def rewind(cache: DecodeCache, num_slots: jax.Array | int) -> DecodeCache:
    """Remove the newest `num_slots` slots of every row from the cache; later tokens overwrite them.

    Raises:
      UserError: linear attention, which keeps a sum; a beam cache; more slots than were written, or more slots of a
        rolling cache than it can restore (where that is known, outside jit; inside, a rolling cache gives NaN logits
        from then on).
    """
    if not has_slots(cache):
        raise UserError(
            "cache: linear attention keeps a sum of its tokens, so none can be removed. Take attention='softmax'."
        )
    if cache.beams:
        raise UserError("cache: holds beams, which share slots, so none can be removed. Rewind before expand_beams.")
    limit = cache.rolling.spare if cache.rolling else cache.num_written
    if not isinstance(num_slots, jax.core.Tracer) and not isinstance(limit, jax.core.Tracer):
        if not 0 <= num_slots <= limit:
            meaning = "slots that the rolling cache can restore" if cache.rolling else "slots written"
            raise UserError(f"num_slots={num_slots}: must be from 0 to {limit}, the {meaning}.")
    num_written = cache.num_written - num_slots
    if cache.rolling:
        return rewind_rolling(cache, num_slots)._replace(num_written=num_written)
    return _keep_tokens(cache, jnp.arange(cache.capacity) < num_written)._replace(num_written=num_written)


def accept_prefix(cache: DecodeCache, num_newest: int, num_kept: jax.Array) -> DecodeCache:
    """Keep the first `num_kept` [B] of each row's `num_newest` newest slots; the others no longer hold tokens.

    All rows share the slot numbers: slots that no row keeps are removed, slots that only some rows keep become padding
    in the others.

    Raises:
      UserError: as `rewind`.
    """
    end = cache.num_written - num_newest + num_kept[:, None]
    cache = rewind(cache, num_newest - jnp.max(num_kept))
    return _keep_tokens(cache, jnp.arange(cache.capacity) < end)


def _keep_tokens(cache, is_kept):
    """Clear the tokens of all slots where `is_kept` [B or 1, S] is False."""
    num_removed = jnp.sum(cache.is_token & ~is_kept, axis=1, keepdims=True, dtype=jnp.int32)
    return cache._replace(is_token=cache.is_token & is_kept, num_tokens=cache.num_tokens - num_removed)


def is_overrun(cache: DecodeCache) -> jax.Array | bool:
    """True if more slots were used than exist, or a rolling cache was rewound too far (a bool scalar under jit)."""
    if cache.rolling:
        return cache.rolling.spare < 0
    return cache.num_written > cache.capacity if has_slots(cache) else False


def has_slots(cache: DecodeCache) -> bool:
    """True if the cache has a slot for each token; linear attention keeps their sum instead."""
    return not isinstance(cache.layers[0], linear_attention.LinearState)


def reorder(cache: Any, rows: jax.Array, with_source: bool = True) -> Any:
    """Gather rows of the cache: row i of the result is row `rows[i]`; there may be more rows than before, or fewer.

    A beam cache moves only the beams' paths. `cache` may also be another pytree of arrays with a leading row axis.

    Args:
      with_source: False keeps the source unchanged: W beams share one of its rows.
    """
    if isinstance(cache, DecodeCache) and cache.beams:
        return cache._replace(beams=cache.beams.reordered(rows))
    if not with_source and isinstance(cache, DecodeCache):
        return reorder(cache._replace(source=None), rows)._replace(source=cache.source)
    num_rows = len(cache.num_tokens) if isinstance(cache, DecodeCache) else 0  # layers have K rows for each of these
    return jax.tree.map(lambda x: _take(x, rows, num_rows or len(x)) if x.ndim else x, cache)


def _take(x: jax.Array, rows: jax.Array, num_rows: int) -> jax.Array:
    """Gather `x[rows]`, where the first axis of x has `num_rows` rows or a multiple (heads of a row in sequence)."""
    each = x.shape[0] // num_rows
    return x.reshape(num_rows, each, *x.shape[1:])[rows].reshape(len(rows) * each, *x.shape[1:])


def expand_beams(cache: Any, num_rows: int, num_beams: int, capacity: int) -> Any:
    """KV cache for `num_beams` continuations of each row, which share at least `capacity` slots: kv_cache_beams.py.

    A linear state, a rolling cache or another pytree is copied for each beam instead. The source stays unchanged.
    """
    if isinstance(cache, DecodeCache) and has_slots(cache) and not cache.rolling:
        return with_beam_state(cache, num_beams, capacity)
    return reorder(cache, jnp.repeat(jnp.arange(num_rows), num_beams), with_source=False)
