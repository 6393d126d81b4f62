"""Tokens to vectors on the way in, vectors to logits on the way out."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError, choose
from transformer_jax.nn.dropout import Dropout
from transformer_jax.nn.layers import Dense, Embedding, make_norm
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.positions import POSITIONS, count_in_segments, count_tokens


def token_table(config: TransformerConfig) -> Embedding:
    """The embedding of the vocabulary."""
    if not config.vocab_size:
        raise UserError("model.vocab_size=0: a model needs to know how many token ids there are.")
    return Embedding(config.vocab_size, config.d_model, config.init_std, config.dtype)


def sequence_mask(is_token: jax.Array | None, segments: jax.Array | None, is_causal: bool = False) -> Mask:
    """Who sees whom in whole rows [B, T]: not padding, and not what is of another segment; None: there is none."""
    positions = None if is_token is None else count_tokens(is_token)
    positions = positions if segments is None else count_in_segments(segments)
    return Mask(
        is_key=is_token,
        is_causal=is_causal,
        query_segments=segments,
        key_segments=segments,
        query_positions=positions,
        key_positions=positions,
    )


class Embedder(nn.Module):
    """The embedding of tokens, of their positions and types where there are any, and the output projection."""

    config: TransformerConfig
    shared: Embedding | None = None  # a table of tokens that belongs to more than one side
    is_output: bool = True

    def setup(self):
        config = self.config
        self.tokens = self.shared or token_table(config)
        self.scheme = choose(POSITIONS, config.positions, "model.positions")
        if self.scheme.is_learned:
            self.positions = Embedding(
                config.position_offset + config.max_len, config.d_model, config.init_std, config.dtype
            )
        if config.num_token_types:
            self.types = Embedding(config.num_token_types, config.d_model, config.init_std, config.dtype)
        self.norm = make_norm(config) if config.embed_norm else None
        self.drop = Dropout(config.dropout_rate)
        if self.is_output and not config.tie_embeddings:
            self.unembed = Dense((config.vocab_size,), use_bias=False, init_std=config.init_std, dtype=config.dtype)
        if self.is_output and config.logit_bias:
            self.logit_bias = self.param("logit_bias", nn.initializers.zeros, (config.vocab_size,))

    def __call__(
        self, tokens: jax.Array, positions: jax.Array, types: jax.Array | None = None, deterministic: bool = True
    ) -> jax.Array:
        """tokens [B, T], positions [B or 1, T], types [B, T] (None: all 0) -> [B, T, D]."""
        config = self.config
        if types is not None and not config.num_token_types:
            raise UserError("token_types: given, but model.num_token_types=0. Leave them out, or say how many.")
        x = self.tokens(tokens)
        if config.scale_embeddings:  # Vaswani et al. 2017, section 3.4
            x = x * config.d_model**0.5
        if self.scheme.is_learned:
            # One lookup a token, not one for all rows: XLA on a CPU sums the latter's gradient over rows slowly.
            x = x + self.positions(jnp.broadcast_to(positions + config.position_offset, tokens.shape))
        if self.scheme.vectors is not None:
            x = x + self.scheme.vectors(positions, config).astype(x.dtype)
        if config.num_token_types:
            x = x + self.types(jnp.zeros_like(tokens) if types is None else types)
        x = self.norm(x) if self.norm else x
        return self.drop(x, deterministic=deterministic)

    def logits(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., V] float32."""
        config = self.config
        if config.scale_logits:
            x = x * config.d_model**-0.5
        logits = self.tokens.unembed(x) if config.tie_embeddings else self.unembed(x)
        logits, cap = logits.astype(jnp.float32), config.logit_softcap
        logits = logits + self.logit_bias if config.logit_bias else logits
        return cap * jnp.tanh(logits / cap) if cap else logits  # Gemma Team 2024, section 2


def check_length(config: TransformerConfig, tokens: jax.Array, name: str = "tokens") -> None:
    """Raises UserError where a row is longer than the context."""
    if tokens.shape[1] > config.max_len:
        raise UserError(f"{name}: {tokens.shape[1]} in a row, but model.max_len={config.max_len}. Shorten them.")
