"""GPT: a decoder-only language model, Radford et al. 2019; beside a source, the decoder of Seq2Seq."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.config import TransformerConfig
from transformer_jax.models.embed import Embedder, check_length, sequence_mask
from transformer_jax.nn import kv_cache as kv
from transformer_jax.nn.blocks import Stack
from transformer_jax.nn.layers import Embedding


class GPT(nn.Module):
    """Embed, stack of causal blocks, project to the vocabulary. Logits are float32.

    `model.apply(params, tokens)` runs a whole sequence, `model.apply(params, tokens, is_token, cache,
    method="extend")` the next piece of one; both give the same logits.
    """

    config: TransformerConfig
    has_source: bool = False  # every block attends to a source, too
    shared: Embedding | None = None

    def setup(self):
        self.embed = Embedder(self.config, self.shared)
        self.stack = Stack(self.config, self.has_source)

    def __call__(
        self,
        tokens: jax.Array,
        is_token: jax.Array | None = None,
        deterministic: bool = True,
        segments: jax.Array | None = None,
        source: kv.Source | None = None,
    ) -> jax.Array:
        """Logits of the next token at every place.

        Args:
          tokens: [B, T] int, T <= max_len.
          is_token: [B, T] bool, False for padding, on either side; None: no padding.
          deterministic: False while training: dropout, with an rng named "dropout".
          segments: [B, T] int, for texts packed into a row: a number for each (and for padding); none sees another.
          source: what cross-attention looks at.
        Returns:
          [B, T, V] float32; what stands at padding means nothing.
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
        source: kv.Source | None = None,
    ) -> jax.Array:
        """What `logits` projects: [B, T, D]. Arguments as for `__call__`.

        Apart, for whoever does not want all logits [B, T, V] at once.
        """
        check_length(self.config, tokens)
        mask = sequence_mask(is_token, segments, is_causal=True)
        x = self.embed(tokens, mask.queries(0, tokens.shape[1]), deterministic=deterministic)
        return self.stack(x, mask, None, source, deterministic)[0]

    def logits(self, x: jax.Array) -> jax.Array:
        """The output projection: [..., D] -> [..., V] float32."""
        return self.embed.logits(x)

    def extend(
        self, tokens: jax.Array, is_token: jax.Array, cache: kv.DecodeCache, last_only: bool = False
    ) -> tuple[jax.Array, kv.DecodeCache]:
        """Read the next T tokens of every row after those in the cache: prefill, a chunk of one, or a decode step.

        Args:
          tokens: [B, T] int; is_token: [B, T] bool, False for padding.
          cache: from `cache.make_cache` or `make_rolling_cache` (with a source, from Seq2Seq's `start`) or an earlier call.
          last_only: logits of each row's last token alone (what decoding wants: no [T, V] for the prompt).
        Returns:
          Logits [B, T, V] (or [B, V]) float32, and the cache. NaN if the cache was already full.
        Raises:
          UserError: more tokens than the cache has room for, where that can be known.
        """
        shape = tokens.shape
        if cache.beams:  # W beams of a row are read in it
            tokens, is_token = (x.reshape(-1, cache.beams.num_beams) for x in (tokens, is_token))
        cache = kv.append(cache, is_token)
        mask = kv.newest_mask(cache, is_token)
        x = self.embed(tokens, mask.query_positions)
        x, layers = self.stack(x, mask, cache.layers, cache.source)
        x = x.reshape(*shape, -1)
        if last_only:
            last = shape[1] - 1 - jnp.argmax(is_token.reshape(shape)[:, ::-1], axis=1)
            x = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
        logits = jnp.where(kv.is_overrun(cache), jnp.nan, self.embed.logits(x))
        return logits, cache._replace(layers=layers)

    def read_source(self, encoded: jax.Array, is_token: jax.Array) -> kv.Source:
        """Every layer's keys and values of an encoded source [B, S, D]."""
        return self.stack.source(encoded, is_token)
