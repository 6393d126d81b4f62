"""GPT: a decoder-only language model. Radford et al. 2019, with the choices of TransformerConfig."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax import cache as kv
from transformer_jax import masks
from transformer_jax.blocks import Stack
from transformer_jax.config import TransformerConfig, UserError, choose
from transformer_jax.layers import Dense, Embedding
from transformer_jax.positions import POSITIONS, count_tokens


class GPT(nn.Module):
    """Embed, stack of causal blocks, project to the vocabulary. Logits are float32.

    `model.apply(params, tokens)` runs a whole sequence, `model.apply(params, tokens, is_token, cache,
    method="extend")` the next piece of one; both give the same logits.
    """

    config: TransformerConfig

    def setup(self):
        config = self.config
        if not config.vocab_size:
            raise UserError("model.vocab_size=0: a model needs to know how many token ids there are.")
        self.scheme = choose(POSITIONS, config.positions, "model.positions")
        self.embed = Embedding(config.vocab_size, config.d_model, config.init_std, config.dtype)
        if self.scheme.is_learned:
            self.position_embed = Embedding(config.max_len, config.d_model, config.init_std, config.dtype)
        self.drop = nn.Dropout(config.dropout_rate)
        self.stack = Stack(config)
        if not config.tie_embeddings:
            self.unembed = Dense(
                (config.vocab_size,), use_bias=False, init_std=config.init_std, dtype=config.dtype
            )

    def __call__(
        self, tokens: jax.Array, is_token: jax.Array | None = None, deterministic: bool = True
    ) -> jax.Array:
        """Logits of the next token at every place.

        Args:
          tokens: [B, T] int, T <= max_len.
          is_token: [B, T] bool, False for padding, on either side; None: no padding.
          deterministic: False while training: dropout, with an rng named "dropout".
        Returns:
          [B, T, V] float32; what stands at padding means nothing.
        Raises:
          UserError: T > max_len.
        """
        self._check_length(tokens.shape[1])
        if is_token is None:
            mask = masks.Mask(is_causal=True)
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        else:
            mask = masks.Mask(masks.padding(is_token), is_causal=True)
            positions = count_tokens(is_token)
        x = self._embed(tokens, positions, deterministic)
        x, _ = self.stack(x, positions, mask, deterministic=deterministic)
        return self._logits(x)

    def extend(
        self, tokens: jax.Array, is_token: jax.Array, cache: kv.DecodeCache, last_only: bool = False
    ) -> tuple[jax.Array, kv.DecodeCache]:
        """Read the next T tokens of every row after those in the cache: prefill, a chunk of one, or a decode step.

        Args:
          tokens: [B, T] int; is_token: [B, T] bool, False for padding.
          cache: from `cache.make_cache` or an earlier call.
          last_only: logits of each row's last token alone (what decoding wants: no [T, V] for the prompt).
        Returns:
          Logits [B, T, V] (or [B, V]) float32, and the cache. NaN if the cache was already full.
        Raises:
          UserError: more tokens than the cache has room for, where that can be known.
        """
        slot = cache.num_written
        positions = count_tokens(is_token, cache.num_tokens)
        cache = kv.mark(cache, is_token)
        may_attend = masks.causal(tokens.shape[1], cache.capacity, slot) & masks.padding(cache.is_token)
        x = self._embed(tokens, positions, deterministic=True)
        x, layers = self.stack(x, positions, masks.Mask(may_attend), cache.layers, slot)
        if last_only:
            last = tokens.shape[1] - 1 - jnp.argmax(is_token[:, ::-1], axis=1)
            x = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
        logits = jnp.where(kv.is_overrun(cache), jnp.nan, self._logits(x))
        return logits, cache._replace(layers=layers)

    def _embed(self, tokens, positions, deterministic):
        x = self.embed(tokens)
        if self.scheme.is_learned:
            x = x + self.position_embed(positions)
        if self.scheme.vectors is not None:
            x = x + self.scheme.vectors(positions, self.config.d_model).astype(x.dtype)
        return self.drop(x, deterministic=deterministic)

    def _logits(self, x):
        logits = self.embed.unembed(x) if self.config.tie_embeddings else self.unembed(x)
        logits, cap = logits.astype(jnp.float32), self.config.logit_softcap
        return cap * jnp.tanh(logits / cap) if cap else logits  # Gemma Team 2024, section 2

    def _check_length(self, num_tokens):
        if num_tokens > self.config.max_len:
            raise UserError(f"tokens: {num_tokens} in a row, but model.max_len={self.config.max_len}. Shorten them.")
