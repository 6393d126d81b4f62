"""Linear attention's cache: sums over all tokens so far, of constant size, in place of keys and values."""

from typing import NoReturn, Self

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError, choose
from transformer_jax.nn.kv_cache import CACHE_TYPES, KeysValues, KVCache, tokens_before
from transformer_jax.nn.linear_attention import empty_state
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.positions import token_positions


class LinearCache(KVCache):
    """Linear cache: for each layer the state of linear attention, which takes the places of keys and values.

    `read` returns the state, `write` replaces it. There are no slots, and the cache is never full.
    """

    @classmethod
    def empty(cls, config: TransformerConfig, batch_size: int, capacity: int) -> "LinearCache":
        """Cache with all sums 0; `capacity` is not needed."""
        state = KeysValues(*empty_state(batch_size, config.num_kv_heads, config.head_dim))
        return cls(
            layers=(state,) * config.num_layers,
            is_token=jnp.zeros((batch_size, 0), bool),
            num_tokens=jnp.zeros((batch_size, 1), jnp.int32),
            num_written=jnp.int32(0),
        )

    @property
    def is_overrun(self) -> bool:
        """False: nothing is ever lost."""
        return False

    def append(self, is_token: jax.Array) -> Self:
        """Count the newest tokens, `is_token` [B, T]."""
        return self.count(is_token)

    def mask(self, is_token: jax.Array) -> Mask:
        """Causal mask of the newest tokens among themselves; the state stands for all tokens before them."""
        return Mask(
            is_key=is_token,
            query_positions=token_positions(is_token, tokens_before(self, is_token)),
            first_slot=self.num_written - is_token.shape[1],
            is_causal=True,
        )

    def write(self, layer: int, keys: jax.Array, values: jax.Array) -> Self:
        """Replace the state of a layer: the sums of its keys and of its values."""
        return self.with_layer(layer, KeysValues(keys, values))

    def read(self, layer: int, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
        """State of a layer, the sums of its keys and of its values, in float32 whatever `dtype` is."""
        keys, values = self.layers[layer]
        assert isinstance(keys, jax.Array) and isinstance(values, jax.Array)
        return keys, values

    def rewind(self, num: jax.Array | int) -> NoReturn:
        """Raise UserError: a token cannot be taken out of a sum."""
        raise UserError(
            "cache: linear attention keeps a sum of its tokens, so none can be removed. Take attention='softmax'."
        )

    def drop_padding(self, num: jax.Array | int) -> Self:
        """The cache as it is: padding is in no sum."""
        return self

    def accept_prefix(self, lengths: jax.Array, num_newest: int) -> NoReturn:
        """Raise UserError, as `rewind`."""
        self.rewind(num_newest)

    def clear(self, rows: jax.Array) -> Self:
        """Set the sums of some rows to 0: see KVCache."""
        layers = jax.tree.map(lambda x: x.at[rows].set(0.0), self.layers)
        return self.replace(layers=layers, num_tokens=self.num_tokens.at[rows].set(0))

    def with_type(self, cache_type: str) -> Self:
        """The cache as it is for "model". Raises UserError for any other type: sums need float32."""
        if choose(CACHE_TYPES, cache_type, "cache_type"):
            raise UserError(
                f"cache_type={cache_type!r}: linear attention keeps sums, in float32. Take cache_type=model."
            )
        return self
