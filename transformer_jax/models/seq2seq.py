"""Seq2Seq: an encoder reads the source, a decoder writes the target and looks at it. Vaswani et al. 2017."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.models.embed import token_table
from transformer_jax.models.encoder import Encoder
from transformer_jax.models.gpt import GPT
from transformer_jax.nn import kv_cache as kv


@dataclasses.dataclass(frozen=True)
class Seq2SeqConfig:
    """A shape for each side; they may differ in everything but, where embeddings are shared, vocabulary and width."""

    encoder: TransformerConfig
    decoder: TransformerConfig
    share_embeddings: bool = True  # one table of tokens for source and target

    def __post_init__(self):
        if not self.share_embeddings:
            return
        for name in ("vocab_size", "d_model"):
            ours, theirs = getattr(self.encoder, name), getattr(self.decoder, name)
            if ours != theirs:
                raise UserError(
                    f"encoder.{name}={ours}: must equal decoder.{name}={theirs} where embeddings are shared. "
                    "Take share_embeddings=False, or the same number."
                )


class Seq2Seq(nn.Module):
    """Source tokens and target tokens so far to logits of the next target token.

    `__call__` trains on whole targets; `start` encodes a source once, and `extend` then reads target tokens piece by
    piece, as GPT's does: what decoding sees is the same for both.
    """

    config: Seq2SeqConfig

    def setup(self):
        config = self.config
        self.shared = token_table(config.decoder) if config.share_embeddings else None
        self.encoder = Encoder(config.encoder, self.shared)
        self.decoder = GPT(config.decoder, has_source=True, shared=self.shared)

    def __call__(
        self,
        source: jax.Array,
        target: jax.Array,
        source_is_token: jax.Array | None = None,
        target_is_token: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Logits of the next target token at every place of the target.

        Args:
          source: [B, S] int; target: [B, T] int, shifted: it begins with the token that starts a target.
          source_is_token, target_is_token: bool of the same shapes, False for padding; None: no padding.
          deterministic: False while training: dropout, with an rng named "dropout".
        Returns:
          [B, T, V] float32; what stands at padding means nothing.
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
        """What `logits` projects: [B, T, D]. Arguments as for `__call__`."""
        read = self.read(source, source_is_token, deterministic)
        return self.decoder.activations(target, target_is_token, deterministic, source=read)

    def logits(self, x: jax.Array) -> jax.Array:
        """The output projection: [..., D] -> [..., V] float32."""
        return self.decoder.logits(x)

    def start(
        self, source: jax.Array, is_token: jax.Array | None = None, capacity: int = 0, extra_slots: int = 0
    ) -> kv.DecodeCache:
        """Encode the source and project it to every layer's keys and values, once for all that is decoded from it.

        Args:
          source: [B, S] int; is_token: [B, S] bool, False for padding; None: no padding.
          capacity: target tokens that the cache has room for; 0: the decoder's max_len. extra_slots: see `make_cache`.
        """
        config = self.config.decoder
        cache = kv.make_cache(config, source.shape[0], capacity or config.max_len, extra_slots)
        return cache._replace(source=self.read(source, is_token))

    def extend(
        self, tokens: jax.Array, is_token: jax.Array, cache: kv.DecodeCache, last_only: bool = False
    ) -> tuple[jax.Array, kv.DecodeCache]:
        """The next target tokens [B, T] after those in the cache: see GPT.extend."""
        return self.decoder.extend(tokens, is_token, cache, last_only)

    def read(self, source: jax.Array, is_token: jax.Array | None = None, deterministic: bool = True) -> kv.Source:
        """The source as cross-attention looks at it."""
        encoded = self.encoder(source, is_token, None, deterministic)
        is_token = jnp.ones(source.shape, bool) if is_token is None else is_token
        return self.decoder.read_source(encoded, is_token)
