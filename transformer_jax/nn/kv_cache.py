"""KV cache protocol: the keys and values of all tokens so far, as an explicit pytree with one set of methods.

A cache is an argument and a result of a model's `extend`; no module holds state. Models and decoding call the methods
of `KVCache` and never ask which class they hold:

    FullCache     kv_cache_full.py     a slot for every token, and for padding
    RollingCache  kv_cache_rolling.py  slots by position, used again outside a sliding window
    BeamCache     kv_cache_beams.py    continuations that share the slots of their row
    LinearCache   kv_cache_linear.py   sums over all tokens, for linear attention

kv_cache_kinds.py chooses a class for a model. Layers are separate arrays, not one stacked [L, ...]: on a CPU a decode
step over a stacked cache took more than twice as long.
"""

from collections.abc import Callable
from typing import NamedTuple, Self

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import choose
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.quantization import Int8, dequantize, to_int8


class KeysValues(NamedTuple):
    """Keys and values of one layer, [B K, S, H] each: the layout that the products of attention read.

    With another order of axes, or with four axes, XLA on a CPU copied all of them at every step. An Int8 has one scale
    for each vector.
    """

    keys: jax.Array | Int8
    values: jax.Array | Int8

    @classmethod
    def from_projections(cls, k_BSKH: jax.Array, v_BSKH: jax.Array) -> "KeysValues":
        """Keys and values in the layout of the projections."""
        return cls(by_head(k_BSKH), by_head(v_BSKH))

    def read(self, num_rows: int, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
        """Keys and values [B, S, K, H] of type `dtype` for `attend`; not copied if they have this type already."""

        def by_row(x):
            return x.reshape(num_rows, -1, *x.shape[1:]).swapaxes(1, 2)

        return by_row(dequantize(self.keys, dtype)), by_row(dequantize(self.values, dtype))

    def update(self, new: "KeysValues", put: Callable[[jax.Array, jax.Array], jax.Array]) -> "KeysValues":
        """Store new keys and values, in the type of the old: `put` writes [B K, T, H or 1] into [B K, S, H or 1]."""
        if isinstance(self.keys, Int8):
            new = KeysValues(*map(_as_int8, new))
        return jax.tree.map(lambda old, new: put(old, new.astype(old.dtype)), self, new)


def by_head(x_BSKH: jax.Array) -> jax.Array:
    """Reshape [B, S, K, H] -> [B K, S, H]."""
    B, S, K, H = x_BSKH.shape
    return x_BSKH.swapaxes(1, 2).reshape(B * K, S, H)


class EncodedSource(NamedTuple):
    """Encoded source for cross-attention: keys and values of every layer, and the slots that hold tokens.

    It has B rows where a cache has B W rows after `expand`: rows 0 to W - 1 belong to source 0, and so on.
    """

    layers: tuple[KeysValues, ...]
    is_token: jax.Array  # [B, source length] bool


def _as_int8(x: jax.Array | Int8) -> Int8:
    return to_int8(dequantize(x, jnp.float32))


CACHE_TYPES: dict[str, Callable[[jax.Array | Int8], jax.Array | Int8] | None] = {
    "model": None,  # the type that the model computes in
    "float32": lambda x: dequantize(x, jnp.float32),
    "bfloat16": lambda x: dequantize(x, jnp.bfloat16),
    "int8": _as_int8,
}


class KVCache(flax.struct.PyTreeNode):
    """KV cache of a whole model: the keys and values of every layer, and the contents of the slots.

    One call of `extend` is `append`, then for each layer `write` and `read`, with the attention mask of `mask`.
    """

    layers: tuple[KeysValues, ...]
    is_token: jax.Array  # [B, S] bool: slots that hold a token, not padding and not empty; S = 0 without slots
    num_tokens: jax.Array  # int32 [B, 1]: tokens (not padding) so far, the position of the next one
    num_written: jax.Array  # int32: tokens and padding so far, the same for every row; the slots in use of a full cache
    source: EncodedSource | None = None
    rows_per_source: int = flax.struct.field(pytree_node=False, default=1)  # rows that share a row of the source

    @classmethod
    def empty(cls, config: TransformerConfig, batch_size: int, capacity: int) -> Self:
        """Cache for `batch_size` rows before the first token, with `capacity` slots."""
        raise NotImplementedError

    @property
    def capacity(self) -> int:
        """Number of slots, S."""
        return self.is_token.shape[1]

    @property
    def num_rows(self) -> int:
        """Number of rows of slots, B. The continuations of a BeamCache are the queries of their row."""
        return self.is_token.shape[0]

    @property
    def is_overrun(self) -> jax.Array | bool:
        """True if the cache has lost keys, because it had too few slots (a bool scalar under jit)."""
        return self.num_written > self.capacity

    def append(self, is_token: jax.Array) -> Self:
        """Reserve slots for T tokens, `is_token` [B, T]; `write` then stores their keys and values, layer by layer.

        Raises:
          UserError: too few slots, as far as that is known outside jit; inside, `is_overrun` becomes True and `extend`
            returns NaN logits. JAX would silently overwrite the last slots.
        """
        raise NotImplementedError

    def mask(self, is_token: jax.Array) -> Mask:
        """Attention mask of the newest tokens, for the `is_token` [B, T] that was just passed to `append`."""
        raise NotImplementedError

    def write(self, layer: int, k_BTKH: jax.Array, v_BTKH: jax.Array) -> Self:
        """Store the keys and values of the newest tokens in the slots that `append` has reserved."""
        first_slot = self.num_written - k_BTKH.shape[1]

        def put(old: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice(old, new, (0, first_slot, 0))

        return self.with_layer(layer, self.layers[layer].update(KeysValues.from_projections(k_BTKH, v_BTKH), put))

    def read(self, layer: int, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
        """Keys and values [B, S, K, H] of a layer, of type `dtype`."""
        return self.layers[layer].read(self.num_rows, dtype)

    def rewind(self, num: jax.Array | int) -> Self:
        """Remove the newest `num` tokens of every row, padding counted; later tokens take their slots.

        Raises:
          UserError: the class cannot remove tokens, or not as many, as far as that is known outside jit.
        """
        raise NotImplementedError

    def drop_padding(self, num: jax.Array | int) -> Self:
        """Remove the newest `num` columns, which are padding in every row, so that they take no slots."""
        return self.rewind(num)

    def accept_prefix(self, lengths: jax.Array, num_newest: int) -> Self:
        """Keep the first `lengths` [B] of each row's `num_newest` newest tokens; the others are removed.

        Raises:
          UserError: as `rewind`.
        """
        raise NotImplementedError

    def clear(self, rows: jax.Array) -> Self:
        """Remove all tokens of some rows (indices, or bool [B]): they start again, and the others continue."""
        raise NotImplementedError

    def reorder(self, rows: jax.Array) -> Self:
        """Gather rows: row i of the result is row `rows[i]`; there may be more rows than before, or fewer.

        After `expand`, row i and row `rows[i]` must belong to the same source, which is then left as it is.
        """

        def gather(x: jax.Array) -> jax.Array:
            return _take(x, rows, self.num_rows) if x.ndim else x

        source = self.source if self.rows_per_source > 1 else jax.tree.map(gather, self.source)
        return jax.tree.map(gather, self.replace(source=None)).replace(source=source)

    def expand(self, num: int, capacity: int = 0) -> "KVCache":
        """Cache for `num` continuations of each row, next to each other, which share its source.

        Args:
          capacity: slots for all continuations of a row together, where they share its slots.
        """
        rows = jnp.repeat(jnp.arange(self.num_rows), num)
        expanded = self.replace(source=None).reorder(rows)
        return expanded.replace(source=self.source, rows_per_source=num * self.rows_per_source)

    def insert(self, rows: jax.Array, other: Self) -> Self:
        """Replace rows by those of another cache of the same class and capacity: row `rows[i]` by its row i.

        The rows of a full cache share their slots, so only caches with slots of their own can be mixed.
        """

        def put(x: jax.Array, new: jax.Array) -> jax.Array:
            each = x.shape[0] // self.num_rows
            old = x.reshape(self.num_rows, each, *x.shape[1:])
            return old.at[rows].set(new.reshape(len(rows), *old.shape[1:])).reshape(x.shape)

        return jax.tree.map(lambda x, new: put(x, new) if x.ndim else jnp.minimum(x, new), self, other)

    def with_capacity(self, capacity: int) -> Self:
        """The cache with at least `capacity` slots, where it has one for each token."""
        return self

    def with_type(self, cache_type: str) -> Self:
        """Convert the keys and values to another type, a name in CACHE_TYPES; the computation's type does not change.

        Raises:
          UserError: an unknown type, or linear attention, whose sums need float32.
        """
        convert = choose(CACHE_TYPES, cache_type, "cache_type")
        if convert is None:
            return self
        return self.replace(layers=tuple(KeysValues(*map(convert, layer)) for layer in self.layers))

    def count(self, is_token: jax.Array) -> Self:
        """Count the new tokens `is_token` [B, T], without slots for them."""
        num_tokens = self.num_tokens + jnp.sum(is_token, axis=1, keepdims=True, dtype=jnp.int32)
        return self.replace(num_tokens=num_tokens, num_written=self.num_written + is_token.shape[1])

    def with_layer(self, layer: int, keys_values: KeysValues) -> Self:
        """The cache with other keys and values of one layer."""
        return self.replace(layers=(*self.layers[:layer], keys_values, *self.layers[layer + 1 :]))


def tokens_before(cache: KVCache, is_token: jax.Array) -> jax.Array:
    """Number of tokens of each row before the newest ones, `is_token` [B, T], which are counted already: [B, 1]."""
    return cache.num_tokens - jnp.sum(is_token, axis=1, keepdims=True, dtype=jnp.int32)


def _take(x: jax.Array, rows: jax.Array, num_rows: int) -> jax.Array:
    """Gather `x[rows]`, where the first axis of x has `num_rows` rows or a multiple (heads of a row in sequence)."""
    each = x.shape[0] // num_rows
    return x.reshape(num_rows, each, *x.shape[1:])[rows].reshape(len(rows) * each, *x.shape[1:])
