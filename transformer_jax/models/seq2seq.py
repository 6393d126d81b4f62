"""Seq2Seq: encoder-decoder model, with cross-attention from the target to the source. Vaswani et al. 2017."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.models.embed import pad_before, token_embedding
from transformer_jax.models.encoder import Encoder
from transformer_jax.models.gpt import GPT
from transformer_jax.nn.kv_cache import EncodedSource, KVCache
from transformer_jax.nn.kv_cache_kinds import make_cache


@dataclasses.dataclass(frozen=True)
class Seq2SeqConfig:
    """Config of an encoder-decoder: one for each side, which may differ in everything.

    With shared embeddings, vocab_size and d_model must be equal.
    """

    encoder: TransformerConfig
    decoder: TransformerConfig
    share_embeddings: bool = True  # one token table for source and target

    def __post_init__(self):
        if not self.share_embeddings:
            return
        for name in ("vocab_size", "d_model"):
            of_encoder = getattr(self.encoder, name)
            of_decoder = getattr(self.decoder, name)
            if of_encoder != of_decoder:
                raise UserError(
                    f"encoder.{name}={of_encoder}: must equal decoder.{name}={of_decoder} where embeddings are shared. "
                    "Take share_embeddings=False, or the same number."
                )


class Seq2Seq(nn.Module):
    """Encoder-decoder: logits of the next target token from the source and the target tokens so far.

    `__call__` runs whole targets, for training. For decoding, `encode_source` encodes a source once and returns a KV
    cache; `extend` then runs target tokens chunk by chunk, as GPT's does, so the decoding engine needs no special case.

    Cross-attention has no positions of its own: a target and a source have no distance. The schemes that act inside of
    attention (rotary, t5, alibi, shaw) act in self-attention only, as in T5; cross-attention then finds a source token
    by its content and its neighbours. Learned and sinusoidal positions are added to the embeddings, so cross-attention
    sees them. A task that asks for positions of the source, such as reversing it, needs one of these on both sides.
    """

    reads_source: ClassVar[bool] = True

    config: Seq2SeqConfig
    remat: str = "none"  # of training: see Stack

    def setup(self):
        config = self.config
        self.shared = token_embedding(config.decoder) if config.share_embeddings else None
        self.encoder = Encoder(config.encoder, self.shared, remat=self.remat)
        self.decoder = GPT(config.decoder, has_source=True, shared=self.shared, remat=self.remat)

    def __call__(
        self,
        source: jax.Array,
        target: jax.Array,
        source_is_token: jax.Array | None = None,
        target_is_token: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Next-token logits at every position of the target.

        Args:
          source: [B, S] int; target: [B, T] int, shifted right: it begins with the decoder's start token.
          source_is_token, target_is_token: bool of the same shapes, False for padding; None: no padding.
          deterministic: False in training: dropout, with an rng named "dropout".
        Returns:
          [B, T, V] float32; values at padding are arbitrary.
        Raises:
          UserError: a row longer than its side's max_len.
        """
        return self.logits(self.activations(source, target, source_is_token, target_is_token, deterministic))

    def activations(
        self,
        source: jax.Array,
        target: jax.Array,
        source_is_token: jax.Array | None = None,
        target_is_token: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Final activations of the decoder [B, T, D], the input of `logits`. Arguments as for `__call__`."""
        encoded_source = self.encode(source, source_is_token, deterministic)
        return self.decoder.activations(target, target_is_token, deterministic, source=encoded_source)

    def logits(self, x: jax.Array) -> jax.Array:
        """Output projection: [..., D] -> [..., V] float32."""
        return self.decoder.logits(x)

    def encode_source(
        self, source: jax.Array, is_token: jax.Array | None = None, capacity: int = 0, extra_slots: int = 0
    ) -> KVCache:
        """Encode the source and return an empty KV cache for its target, with the source's keys and values.

        Args:
          source: [B, S] int; is_token: [B, S] bool, False for padding; None: no padding.
          capacity: maximum number of target tokens; 0: the decoder's max_len. extra_slots: see `make_cache`.
        """
        config = self.config.decoder
        cache = make_cache(config, source.shape[0], capacity or config.max_len, extra_slots)
        return cache.replace(source=self.encode(source, is_token))

    def extend(
        self, tokens: jax.Array, is_token: jax.Array, cache: KVCache, last_only: bool = False
    ) -> tuple[jax.Array, KVCache]:
        """Run the next target tokens [B, T], after those in the KV cache: see GPT.extend."""
        return self.decoder.extend(tokens, is_token, cache, last_only)

    def encode(self, source: jax.Array, is_token: jax.Array | None = None, deterministic: bool = True) -> EncodedSource:
        """Encode the source [B, S] and project it to keys and values for cross-attention."""
        encoded = self.encoder(source, is_token, None, deterministic)
        is_token = jnp.ones(encoded.shape[:2], bool) if is_token is None else pad_before(is_token, encoded.shape[1])
        return self.decoder.source_keys_values(encoded, is_token)
