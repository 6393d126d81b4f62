"""GPT: a decoder-only language model, Radford et al. 2019; with cross-attention, the decoder of Seq2Seq."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.config import TransformerConfig
from transformer_jax.models.embed import Embedder, after_prefix, check_length, sequence_mask
from transformer_jax.nn.blocks import Stack
from transformer_jax.nn.kv_cache import EncodedSource, KVCache
from transformer_jax.nn.layers import Embedding


class GPT(nn.Module):
    """Decoder-only language model: embedding, causal blocks, output projection to float32 logits.

    `model.apply(params, tokens)` runs a whole sequence, `model.apply(params, tokens, is_token, cache,
    method="extend")` the next chunk of one; both give the same logits.
    """

    reads_source: ClassVar[bool] = False

    config: TransformerConfig
    has_source: bool = False  # every block has cross-attention to a source
    shared: Embedding | None = None
    remat: str = "none"  # of training: see Stack

    def setup(self):
        self.embed = Embedder(self.config, self.shared)
        self.stack = Stack(self.config, self.has_source, self.remat)

    def __call__(
        self,
        tokens: jax.Array,
        is_token: jax.Array | None = None,
        deterministic: bool = True,
        segments: jax.Array | None = None,
        source: EncodedSource | None = None,
    ) -> jax.Array:
        """Next-token logits at every position.

        Args:
          tokens: [B, T] int, T <= max_len.
          is_token: [B, T] bool, False for padding, on either side; None: no padding.
          deterministic: False in training: dropout, with an rng named "dropout".
          segments: [B, T] int, for texts packed into a row: one number for each text (and for padding); a token attends
            to its own segment only.
          source: keys and values for cross-attention.
        Returns:
          [B, T, V] float32; values at padding are arbitrary.
        Raises:
          UserError: T > max_len.
        """
        return self.logits(self.activations(tokens, is_token, deterministic, segments, source))

    def activations(
        self,
        tokens: jax.Array,
        is_token: jax.Array | None = None,
        deterministic: bool = True,
        segments: jax.Array | None = None,
        source: EncodedSource | None = None,
    ) -> jax.Array:
        """Final activations [B, T, D], the input of `logits`. Arguments as for `__call__`.

        Separate from `__call__`, for callers that cannot afford all logits [B, T, V] at once.
        """
        check_length(self.config, tokens)
        cache = None
        mask = sequence_mask(is_token, segments, is_causal=True)
        if self.has_variable("prefix", "cache"):
            cache, mask = after_prefix(self.config, self.get_variable("prefix", "cache"), tokens, is_token, segments)
        x = self.embed(tokens, mask.query_positions_at(0, tokens.shape[1]), deterministic=deterministic)
        return self.stack(x, mask, cache, source, deterministic)[0]

    def logits(self, x: jax.Array) -> jax.Array:
        """Output projection: [..., D] -> [..., V] float32."""
        return self.embed.logits(x)

    def extend(
        self, tokens: jax.Array, is_token: jax.Array, cache: KVCache, last_only: bool = False
    ) -> tuple[jax.Array, KVCache]:
        """Run the next T tokens of every row, after those in the KV cache: a prefill, a chunk of one, or a decode step.

        Args:
          tokens: [B, T] int; is_token: [B, T] bool, False for padding.
          cache: from `make_cache`, `make_rolling_cache`, Seq2Seq's `encode_source` or an earlier call. Continuations
            that share the slots of a row are its queries.
          last_only: logits of each row's last token only, as decoding needs (no [T, V] for the prompt).
        Returns:
          Logits [B, T, V] (or [B, V]) float32, and the cache. NaN if the cache was already full.
        Raises:
          UserError: more tokens than the cache has free slots, if that is known (outside jit).
        """
        B, T = tokens.shape
        queries = tokens.reshape(cache.num_rows, -1)
        is_query = is_token.reshape(queries.shape)
        cache = cache.append(is_query)
        mask = cache.mask(is_query)
        x = self.embed(queries, mask.query_positions)
        x, cache = self.stack(x, mask, cache, cache.source)
        x = x.reshape(B, T, -1)
        if last_only:
            last = T - 1 - jnp.argmax(is_token[:, ::-1], axis=1)
            x = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
        return jnp.where(cache.is_overrun, jnp.nan, self.embed.logits(x)), cache

    def source_keys_values(self, encoded: jax.Array, is_token: jax.Array) -> EncodedSource:
        """Project an encoded source [B, S, D] to keys and values of all layers' cross-attention."""
        return self.stack.source_keys_values(encoded, is_token)
