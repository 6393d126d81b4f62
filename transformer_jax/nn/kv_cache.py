"""What decoding remembers: the keys and values of the tokens so far, as an explicit pytree.

A cache has a slot for every token (and for padding) or, for a model with a window, is a ring of slots. It goes in and
comes out of `extend`; nothing is hidden in a module. Layers are separate arrays, not one stacked [L, ...]: on a CPU a
decode step over a stacked cache took more than twice as long.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError, choose
from transformer_jax.nn import linear_attention
from transformer_jax.nn.kv_cache_beams import BeamState, append_beams, beam_mask, fork
from transformer_jax.nn.kv_cache_rolling import RollingState, append_rolling, rewind_rolling, rolling_mask
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.positions import count_tokens
from transformer_jax.nn.quantization import Int8, read, to_int8


class KVCache(NamedTuple):
    """One layer's keys and values, [B K, S, H] each, as the products of attention read them.

    From other axes, or from four, XLA on a CPU made copies of them at every step. An Int8 has a scale for each vector.
    """

    keys: jax.Array | Int8
    values: jax.Array | Int8

    @classmethod
    def of(cls, k_BSKH: jax.Array, v_BSKH: jax.Array) -> "KVCache":
        """As they are projected."""
        return cls(by_head(k_BSKH), by_head(v_BSKH))

    def read(self, num_heads: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
        """Keys and values [B, S, K, H] of `dtype`, as `attend` wants them; if they are of it nothing is copied."""

        def by_row(x):
            return x.reshape(-1, num_heads, *x.shape[1:]).swapaxes(1, 2)

        return by_row(read(self.keys, dtype)), by_row(read(self.values, dtype))


def by_head(x_BSKH: jax.Array) -> jax.Array:
    """[B, S, K, H] -> [B K, S, H]."""
    B, S, K, H = x_BSKH.shape
    return x_BSKH.swapaxes(1, 2).reshape(B * K, S, H)


class Source(NamedTuple):
    """What cross-attention looks at: each layer's keys and values of the encoded source, and which of it are tokens.

    It has B rows where the rest of the cache has W B: beams 0 to W - 1 of row 0 first, then those of row 1.
    """

    layers: tuple[KVCache, ...]
    is_token: jax.Array  # [B, source length] bool


class DecodeCache(NamedTuple):
    """The state of a decode: what every layer remembers, and what the slots hold."""

    layers: tuple[Any, ...]  # KVCache, or LinearState, which has no slots
    is_token: jax.Array  # [B, S] bool: slots that hold a token, not padding or nothing; S = 0 without slots
    num_tokens: jax.Array  # int32 [B, 1]: tokens (not padding) seen so far, the position of the next one
    num_written: jax.Array  # int32: places read so far, the same for every row; each has a slot, but for a ring
    source: Source | None = None
    rolling: RollingState | None = None
    beams: BeamState | None = None

    @property
    def capacity(self) -> int:
        """Slots in all, S."""
        return self.is_token.shape[1]


def make_cache(config: TransformerConfig, batch_size: int, capacity: int, extra_slots: int = 0) -> DecodeCache:
    """An empty cache for `batch_size` rows of at most `capacity` slots, padding included.

    Linear attention remembers all in a state of one size, so its cache has no slots and is never full.

    Args:
      extra_slots: more slots, for what is not to stay a token of its row: refused drafts.
    Raises:
      UserError: capacity above model.max_len.
    """
    if capacity > config.max_len:
        raise UserError(f"cache capacity={capacity}: must be at most model.max_len={config.max_len}.")
    return _empty(config, batch_size, capacity + extra_slots)


def make_rolling_cache(config: TransformerConfig, batch_size: int, most_new: int) -> DecodeCache:
    """An empty cache for rows of any length, past max_len too: a ring of slots for a model that has a window.

    Linear attention gets its state, which is of one size anyway.

    Args:
      most_new: tokens that are read at once, at most; the ring has window + most_new - 1 slots.
    Raises:
      UserError: the model's texts end with its context (see `overflow_error`); most_new below 1.
    """
    if why := overflow_error(config):
        raise UserError(why)
    if most_new < 1:
        raise UserError(f"most_new={most_new}: must be at least 1.")
    if config.attention == "linear":
        return _empty(config, batch_size, 0)
    rolling = RollingState(jnp.zeros((batch_size, most_new), bool), jnp.int32(0), config.window)
    return _empty(config, batch_size, config.window + most_new - 1)._replace(rolling=rolling)


def overflow_error(config: TransformerConfig) -> str | None:
    """Why a text cannot go on past the context in constant memory, in a line with the way out; None: it can."""
    if config.attention != "linear" and not config.window:
        return (
            "model.window=0: every token sees all before it, and what is beyond the context has no room. Take "
            "on_overflow=re-prefill, or a model with a window or with linear attention."
        )
    if config.positions in ("learned", "sinusoidal"):
        return (
            f"model.positions={config.positions!r}: end with the context, {config.max_len} tokens. Take "
            "on_overflow=re-prefill, or a model whose positions go on: rotary, t5, alibi, shaw or none."
        )
    return None


def _empty(config: TransformerConfig, batch_size: int, capacity: int) -> DecodeCache:
    if config.attention == "linear":
        layer, capacity = linear_attention.empty_state(batch_size, config.num_kv_heads, config.head_dim), 0
    else:
        nothing = jnp.zeros((batch_size, capacity, config.num_kv_heads, config.head_dim), config.dtype)
        layer = KVCache.of(nothing, nothing)
    is_token, num_tokens = jnp.zeros((batch_size, capacity), bool), jnp.zeros((batch_size, 1), jnp.int32)
    return DecodeCache((layer,) * config.num_layers, is_token, num_tokens, jnp.int32(0))


CACHE_TYPES = {
    "model": None,  # the type that the model computes in
    "float32": lambda x: read(x, jnp.float32),
    "bfloat16": lambda x: read(x, jnp.bfloat16),
    "int8": lambda x: to_int8(read(x, jnp.float32)),
}


def as_type(cache: DecodeCache, cache_type: str) -> DecodeCache:
    """The cache with keys and values of another type, a name in CACHE_TYPES; they are computed with as before.

    Raises:
      UserError: an unknown type, or linear attention, whose sums need float32.
    """
    convert = choose(CACHE_TYPES, cache_type, "cache_type")
    if cache_type == "model":
        return cache
    if not has_slots(cache):
        raise UserError(f"cache_type={cache_type!r}: linear attention keeps sums, in float32. Take cache_type=model.")
    return cache._replace(layers=tuple(KVCache(*map(convert, layer)) for layer in cache.layers))


def write(layer: KVCache, k_BTKH: jax.Array, v_BTKH: jax.Array, slots: jax.Array | int) -> KVCache:
    """Keys and values put into the slots from `slots` on, or one by one into `slots` [B, T].

    What has a slot beyond the last one is left out.
    """

    def put(old, new):  # [B K, S, H or 1], [B K, T, H or 1]
        new = new.astype(old.dtype)
        if jnp.ndim(slots) == 0:
            return jax.lax.dynamic_update_slice(old, new, (0, slots, 0))
        slots_of_heads = jnp.repeat(slots, len(old) // len(slots), axis=0)
        return old.at[jnp.arange(len(old))[:, None], slots_of_heads].set(new, mode="drop")

    new = KVCache.of(k_BTKH, v_BTKH)
    return jax.tree.map(put, layer, KVCache(*map(to_int8, new)) if isinstance(layer.keys, Int8) else new)


def append(cache: DecodeCache, is_token: jax.Array) -> DecodeCache:
    """The next slots hold `is_token` [B, T]; their keys and values are still to be written.

    Raises:
      UserError: the slots end before the new tokens do (only where `num_written` is known, outside jit;
        inside, `extend` returns NaN logits instead: JAX would silently overwrite the last slots). A ring: more
        tokens at once than it was made for.
    """
    if cache.beams:
        return append_beams(cache)
    num_new = is_token.shape[1]
    num_tokens = cache.num_tokens + jnp.sum(is_token, axis=1, keepdims=True, dtype=jnp.int32)
    marked = cache._replace(num_tokens=num_tokens, num_written=cache.num_written + num_new)
    if not has_slots(cache):
        return marked
    if cache.rolling:
        return append_rolling(marked, is_token)
    full = f"cache: {num_new} new slots do not fit into capacity={cache.capacity}"
    if num_new > cache.capacity:
        raise UserError(f"{full}. Make a larger cache, or feed fewer tokens.")
    if not isinstance(cache.num_written, jax.core.Tracer) and cache.num_written + num_new > cache.capacity:
        raise UserError(f"{full}, {cache.num_written} of it written. Make a larger cache.")
    return marked._replace(is_token=jax.lax.dynamic_update_slice(cache.is_token, is_token, (0, cache.num_written)))


def newest_mask(cache: DecodeCache, is_token: jax.Array) -> Mask:
    """What the newest tokens may look at, `is_token` [B, T] of the places that `append` has just marked."""
    if cache.beams:
        return beam_mask(cache)
    before = cache.num_tokens - jnp.sum(is_token, axis=1, keepdims=True, dtype=jnp.int32)
    mask = Mask(
        is_key=is_token,
        query_positions=count_tokens(is_token, before),
        first_slot=cache.num_written - is_token.shape[1],
        is_causal=True,
    )
    if cache.rolling:
        return rolling_mask(cache, mask)
    if has_slots(cache):
        return mask.replace(is_key=cache.is_token, key_positions=count_tokens(cache.is_token))
    return mask


def rewind(cache: DecodeCache, num_slots: jax.Array | int) -> DecodeCache:
    """The cache without its newest slots (a ring: places read), as many of every row; they are written over later.

    Raises:
      UserError: linear attention, which remembers a sum; a fork; more slots than there are, or more of a ring than have
        written over nothing that the window has (where that is known, outside jit; inside, a ring's logits are NaN
        after it).
    """
    if not has_slots(cache):
        raise UserError("cache: linear attention keeps a sum of its tokens, from which none can be taken back.")
    if cache.beams:
        raise UserError("cache: is forked, and its beams share slots, from which none can be taken back.")
    most = cache.rolling.spare if cache.rolling else cache.num_written
    if not isinstance(num_slots, jax.core.Tracer) and not isinstance(most, jax.core.Tracer):
        if not 0 <= num_slots <= most:
            what = "places that a ring still has" if cache.rolling else "slots written"
            raise UserError(f"num_slots={num_slots}: must be from 0 to {most}, the {what}.")
    num_written = cache.num_written - num_slots
    if cache.rolling:
        return rewind_rolling(cache, num_slots)._replace(num_written=num_written)
    return _with_tokens(cache, jnp.arange(cache.capacity) < num_written)._replace(num_written=num_written)


def accept_prefix(cache: DecodeCache, num_newest: int, num_kept: jax.Array) -> DecodeCache:
    """Of its `num_newest` newest slots each row keeps its first `num_kept` [B]; the others hold no tokens any more.

    Slots are the same for all rows: those that no row keeps are taken back, those that only some keep are padding in
    the others.

    Raises:
      UserError: as `rewind`.
    """
    end = cache.num_written - num_newest + num_kept[:, None]
    cache = rewind(cache, num_newest - jnp.max(num_kept))
    return _with_tokens(cache, jnp.arange(cache.capacity) < end)


def _with_tokens(cache, is_left):
    """Slots that are not left [B or 1, S] hold no token."""
    num_gone = jnp.sum(cache.is_token & ~is_left, axis=1, keepdims=True, dtype=jnp.int32)
    return cache._replace(is_token=cache.is_token & is_left, num_tokens=cache.num_tokens - num_gone)


def is_overrun(cache: DecodeCache) -> jax.Array | bool:
    """Whether more slots were marked than there are, or more of a ring taken back (a bool scalar, also under jit)."""
    if cache.rolling:
        return cache.rolling.spare < 0
    return cache.num_written > cache.capacity if has_slots(cache) else False


def has_slots(cache: DecodeCache) -> bool:
    """Whether tokens are remembered one by one; linear attention remembers their sum."""
    return not isinstance(cache.layers[0], linear_attention.LinearState)


def reorder(cache: DecodeCache, rows: jax.Array, with_source: bool = True) -> DecodeCache:
    """Row i of the result is row `rows[i]` of the cache; there may be more rows than before, or fewer.

    Without the source, which then stays as it is: for beams, W to a row of the source, which look at it together. Of a
    cache that is forked rows are beams, and only what they have been through is moved.
    """
    if isinstance(cache, DecodeCache) and cache.beams:
        return cache._replace(beams=cache.beams.reordered(rows))
    if not with_source and isinstance(cache, DecodeCache):
        return reorder(cache._replace(source=None), rows)._replace(source=cache.source)
    num_rows = len(cache.num_tokens) if isinstance(cache, DecodeCache) else 0  # layers have as many for each head
    return jax.tree.map(lambda x: _take(x, rows, num_rows or len(x)) if x.ndim else x, cache)


def _take(x: jax.Array, rows: jax.Array, num_rows: int) -> jax.Array:
    """`x[rows]`, where the first axis of x has `num_rows` rows, or those times something."""
    each = x.shape[0] // num_rows
    return x.reshape(num_rows, each, *x.shape[1:])[rows].reshape(len(rows) * each, *x.shape[1:])


def expand_beams(cache: Any, num_rows: int, num_beams: int, capacity: int) -> Any:
    """The cache for `num_beams` continuations of each row, which share at least `capacity` slots: see fork.py.

    A state, a ring or a cache of another kind is copied for each beam instead. The source stays as it is.
    """
    if isinstance(cache, DecodeCache) and has_slots(cache) and not cache.rolling:
        return fork(cache, num_beams, capacity)
    return reorder(cache, jnp.repeat(jnp.arange(num_rows), num_beams), with_source=False)
