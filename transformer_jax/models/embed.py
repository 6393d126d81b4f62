"""Input embedding (tokens, positions, token types) and output projection to logits."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError, choose
from transformer_jax.nn import linear_attention
from transformer_jax.nn.dropout import Dropout
from transformer_jax.nn.kv_cache import KVCache
from transformer_jax.nn.layers import Dense, Embedding, make_norm
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.positions import POSITIONS, segment_positions, token_positions


def token_embedding(config: TransformerConfig) -> Embedding:
    """Create the embedding table of the vocabulary.

    Raises:
      UserError: model.vocab_size is 0.
    """
    if not config.vocab_size:
        raise UserError("model.vocab_size=0: must be the number of token ids. Take the tokenizer's vocab_size.")
    return Embedding(config.vocab_size, config.d_model, config.init_std, config.dtype)


def sequence_mask(is_token: jax.Array | None, segments: jax.Array | None, is_causal: bool = False) -> Mask:
    """Attention mask for a full sequence [B, T], without a cache: hides padding and other segments.

    Args:
      is_token: [B, T] bool; None: no padding. segments: [B, T] int; None: one text for each row.
    """
    positions = None if is_token is None else token_positions(is_token)
    positions = positions if segments is None else segment_positions(segments)
    return Mask(
        is_key=is_token,
        is_causal=is_causal,
        query_segments=segments,
        key_segments=segments,
        query_positions=positions,
        key_positions=positions,
    )


def after_prefix(
    config: TransformerConfig,
    prefix: KVCache,
    tokens: jax.Array,
    is_token: jax.Array | None,
    segments: jax.Array | None = None,
) -> tuple[KVCache, Mask]:
    """Cache and causal mask for a full sequence [B, T] whose rows all follow the tokens of a prefix.

    Args:
      prefix: KV cache of one row; see models/prefix.py. is_token: [B, T] bool; None: no padding.
      segments: [B, T] int, for texts packed into a row: each follows the prefix, and none sees another.
    Raises:
      UserError: more tokens than the context has room for; segments after the sums of linear attention.
    """
    check_length(config, tokens, num_before=prefix.capacity)
    B, T = tokens.shape
    P = prefix.capacity
    is_token = jnp.ones((B, T), bool) if is_token is None else is_token
    cache = prefix.reorder(jnp.zeros(B, jnp.int32)).with_capacity(P + T).append(is_token)
    mask = cache.mask(is_token)
    if segments is None:
        return cache, mask
    if not P:
        raise UserError(f"segments: {linear_attention.unsupported('a prefix before packed texts')}")
    positions = P + segment_positions(segments)
    is_same_text = segments[:, :, None] == segments[:, None]
    return cache, mask.replace(
        may_attend=jnp.pad(is_same_text, ((0, 0), (0, 0), (P, 0)), constant_values=True),
        query_positions=positions,
        key_positions=jnp.concatenate([jnp.broadcast_to(jnp.arange(P), (B, P)), positions], axis=1),
    )


def pad_before(is_token: jax.Array, length: int) -> jax.Array:
    """Padding mask [B, T], with the vectors of a soft prompt before the tokens: [B, length] bool, True for both."""
    return jnp.pad(is_token, ((0, 0), (length - is_token.shape[1], 0)), constant_values=True)


class Embedder(nn.Module):
    """Embedding of tokens, and of their positions and types if the config has them; and the output projection."""

    config: TransformerConfig
    shared: Embedding | None = None  # a token table that encoder and decoder share
    has_output: bool = True  # has the output projection

    def setup(self):
        config = self.config
        self.tokens = self.shared or token_embedding(config)
        self.scheme = choose(POSITIONS, config.positions, "model.positions")
        if self.scheme.is_learned:
            self.positions = Embedding(
                config.position_offset + config.max_len, config.d_model, config.init_std, config.dtype
            )
        if config.num_token_types:
            self.types = Embedding(config.num_token_types, config.d_model, config.init_std, config.dtype)
        self.norm = make_norm(config) if config.embed_norm else None
        self.drop = Dropout(config.dropout_rate)
        if self.has_output and not config.tie_embeddings:
            dense = functools.partial(Dense, use_bias=False, init_std=config.init_std, dtype=config.dtype)
            self.unembed = dense((config.vocab_size,), is_output=True)
        if self.has_output and config.logit_bias:
            self.logit_bias = self.param("logit_bias", nn.initializers.zeros, (config.vocab_size,))

    def __call__(
        self, tokens: jax.Array, positions: jax.Array, types: jax.Array | None = None, deterministic: bool = True
    ) -> jax.Array:
        """Embed tokens [B, T] with positions [B or 1, T] and types [B, T] (None: all 0): [B, T, D]."""
        config = self.config
        if types is not None and not config.num_token_types:
            raise UserError("token_types: given, but model.num_token_types=0. Omit them, or set model.num_token_types.")
        x = self.tokens(tokens)
        if config.scale_embeddings:  # Vaswani et al. 2017, section 3.4
            x = x * config.d_model**0.5
        if num := self.num_vectors():
            x = x.at[:, :num].set(self.get_variable("prefix", "vectors").astype(x.dtype))
        if self.scheme.is_learned:
            # One lookup per token, not one row of positions: XLA on a CPU sums the latter's gradient over B slowly.
            x = x + self.positions(jnp.broadcast_to(positions + config.position_offset, tokens.shape))
        if self.scheme.vectors is not None:
            x = x + self.scheme.vectors(positions, config).astype(x.dtype)
        if config.num_token_types:
            x = x + self.types(jnp.zeros_like(tokens) if types is None else types)
        x = self.norm(x) if self.norm else x
        return self.drop(x, deterministic=deterministic)

    def num_vectors(self) -> int:
        """Number of vectors of a soft prompt, which are in place of the first embedded tokens; 0: there is none."""
        return len(self.get_variable("prefix", "vectors")) if self.has_variable("prefix", "vectors") else 0

    def logits(self, x: jax.Array) -> jax.Array:
        """Output projection: [..., D] -> logits [..., V] float32."""
        config = self.config
        if config.scale_logits:
            x = x * config.d_model**-0.5
        logits = self.tokens.unembed(x) if config.tie_embeddings else self.unembed(x)
        cap = config.logit_softcap
        logits = logits + self.logit_bias if config.logit_bias else logits
        return cap * jnp.tanh(logits / cap) if cap else logits  # Gemma Team 2024, section 2


def check_length(config: TransformerConfig, tokens: jax.Array, num_before: int = 0) -> None:
    """Check that no row, after the tokens of a prefix, is longer than the context, model.max_len; else UserError."""
    if num_before + tokens.shape[1] > config.max_len:
        after = f" after a prefix of {num_before}" if num_before else ""
        raise UserError(f"tokens: {tokens.shape[1]} in a row{after}, but model.max_len={config.max_len}. Shorten them.")
