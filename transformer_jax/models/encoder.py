"""Bidirectional encoder, Devlin et al. 2019, and its heads: masked LM, classifier, tagger, embedder."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError, choose
from transformer_jax.models.embed import Embedder, after_prefix, check_length, pad_before, sequence_mask
from transformer_jax.nn.blocks import Stack
from transformer_jax.nn.dropout import Dropout
from transformer_jax.nn.layers import FEED_FORWARDS, Dense, Embedding, make_norm


class Encoder(nn.Module):
    """Encoder: embedding and a stack of bidirectional blocks, tokens [B, T] -> vectors [B, T, D]."""

    reads_source: ClassVar[bool] = False

    config: TransformerConfig
    shared: Embedding | None = None
    has_output: bool = False  # has the output projection, for heads that predict tokens
    remat: str = "none"  # of training: see Stack

    def setup(self):
        self.embed = Embedder(self.config, self.shared, self.has_output)
        self.stack = Stack(self.config, remat=self.remat)

    def __call__(
        self,
        tokens: jax.Array,
        is_token: jax.Array | None = None,
        token_types: jax.Array | None = None,
        deterministic: bool = True,
        segments: jax.Array | None = None,
    ) -> jax.Array:
        """Encode tokens to one vector each.

        Args:
          tokens: [B, T] int, T <= max_len.
          is_token: [B, T] bool, False for padding, on either side; None: no padding.
          token_types: [B, T] int below num_token_types, such as 0 for the first sentence and 1 for the second; None: 0.
          deterministic: False in training: dropout, with an rng named "dropout".
          segments: [B, T] int, for texts packed into a row: one number for each text (and for padding); a token attends
            to its own segment only.
        Returns:
          [B, T, D]; values at padding are arbitrary. With a soft prompt of P vectors, [B, P + T, D]: they are read with
          the text.
        Raises:
          UserError: T > max_len.
        """
        if num := self.embed.num_vectors():  # placeholders: the embedding has the vectors of a soft prompt there
            if segments is not None:
                raise UserError("segments: packed texts cannot share a soft prompt. Take one text for each row.")
            tokens = jnp.pad(tokens, ((0, 0), (num, 0)))
            is_token = None if is_token is None else pad_before(is_token, tokens.shape[1])
            token_types = None if token_types is None else jnp.pad(token_types, ((0, 0), (num, 0)))
        check_length(self.config, tokens)
        cache = None
        mask = sequence_mask(is_token, segments)
        if self.has_variable("prefix", "cache"):
            cache, mask = after_prefix(self.config, self.get_variable("prefix", "cache"), tokens, is_token, segments)
            mask = mask.replace(is_causal=False)
        x = self.embed(tokens, mask.query_positions_at(0, tokens.shape[1]), token_types, deterministic)
        return self.stack(x, mask, cache, deterministic=deterministic)[0]

    def logits(self, x: jax.Array) -> jax.Array:
        """Output projection: [B, T, D] -> [B, T, V] float32."""
        return self.embed.logits(x)


def _first(x, is_token, score):
    """First token of each row: not slot 0 if there is padding on the left."""
    return jnp.take_along_axis(x, jnp.argmax(is_token, axis=1)[:, None, None], axis=1)[:, 0]


def _mean(x, is_token, score):
    weights = is_token[:, :, None].astype(jnp.float32)
    return jnp.sum(x * weights, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1.0)


def _max(x, is_token, score):
    # By index: the gradient of jnp.max divides by the number of ties, which is 0 where XLA rounds x differently again.
    index = jnp.argmax(jnp.where(is_token[:, :, None], x, jnp.finfo(jnp.float32).min), axis=1, keepdims=True)
    return jnp.take_along_axis(x, index, axis=1)[:, 0]


def _attention(x, is_token, score):
    """Attention pooling: a mean weighted by the softmax of learned scores. Lin et al. 2017, section 2.1, one hop."""
    scores = jnp.where(is_token, score(x)[:, :, 0], jnp.finfo(jnp.float32).min)
    return jnp.einsum("BT,BTD->BD", jax.nn.softmax(scores, axis=1), x)


POOLINGS = {"first": _first, "mean": _mean, "max": _max, "attention": _attention}


class Pool(nn.Module):
    """Pooling to one vector per row, padding excluded: [B, T, D] -> [B, D] float32."""

    pooling: str

    @nn.compact
    def __call__(self, x: jax.Array, is_token: jax.Array | None = None) -> jax.Array:
        """Pool x [B, P + T, D] over a soft prompt, if there is one, and the tokens, `is_token` [B, T]; None: all."""
        is_token = jnp.ones(x.shape[:2], bool) if is_token is None else pad_before(is_token, x.shape[1])
        score = Dense((1,), name="score") if self.pooling == "attention" else None
        return choose(POOLINGS, self.pooling, "pooling")(x.astype(jnp.float32), is_token, score)


class MaskedLM(nn.Module):
    """Masked language model: logits [B, T, V] float32 of the original tokens. Devlin et al. 2019, section 3.1."""

    reads_source: ClassVar[bool] = False

    config: TransformerConfig
    remat: str = "none"

    @nn.compact
    def __call__(self, tokens: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        """Compute the masked LM logits; arguments as for Encoder."""
        config = self.config
        encoder = Encoder(config, has_output=True, remat=self.remat, name="encoder")
        x = Dense((config.d_model,), init_std=config.init_std, dtype=config.dtype, name="transform")(
            encoder(tokens, *args, **kwargs)[:, -tokens.shape[1] :]
        )
        x = make_norm(config, "norm")(FEED_FORWARDS[config.feed_forward].activation(x))
        return encoder.logits(x) + self.param("bias", nn.initializers.zeros, (config.vocab_size,))


class SequenceClassifier(nn.Module):
    """Sequence classifier: logits [B, num_classes] float32, after a dense layer with tanh, as in BERT.

    For regression the logits are the numbers: a regressor has one class.
    """

    reads_source: ClassVar[bool] = False

    config: TransformerConfig
    num_classes: int
    pooling: str = "first"
    remat: str = "none"

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        is_token: jax.Array | None = None,
        token_types: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Compute the class logits; arguments as for Encoder."""
        config = self.config
        x = Encoder(config, remat=self.remat, name="encoder")(tokens, is_token, token_types, deterministic)
        pooled = Pool(self.pooling, name="pool")(x, is_token)
        pooled = jnp.tanh(Dense((config.d_model,), init_std=config.init_std, name="dense")(pooled))
        pooled = Dropout(config.dropout_rate)(pooled, deterministic)
        return Dense((self.num_classes,), init_std=config.init_std, name="out")(pooled)


class TokenTagger(nn.Module):
    """Token tagger: logits [B, T, num_tags] float32 for each token."""

    reads_source: ClassVar[bool] = False

    config: TransformerConfig
    num_tags: int
    remat: str = "none"

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        is_token: jax.Array | None = None,
        token_types: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Compute the tag logits; arguments as for Encoder."""
        config = self.config
        x = Encoder(config, remat=self.remat, name="encoder")(tokens, is_token, token_types, deterministic)
        x = Dropout(config.dropout_rate)(x[:, -tokens.shape[1] :], deterministic).astype(jnp.float32)
        return Dense((self.num_tags,), init_std=config.init_std, name="out")(x)


class SentenceEmbedder(nn.Module):
    """Sentence embedder: unit vectors [B, D] float32, so a dot product is a cosine. Reimers & Gurevych 2019."""

    reads_source: ClassVar[bool] = False

    config: TransformerConfig
    pooling: str = "mean"
    remat: str = "none"

    @nn.compact
    def __call__(self, tokens: jax.Array, is_token: jax.Array | None = None, *args: Any, **kwargs: Any) -> jax.Array:
        """Compute the sentence vectors; arguments as for Encoder."""
        x = Encoder(self.config, remat=self.remat, name="encoder")(tokens, is_token, *args, **kwargs)
        pooled = Pool(self.pooling, name="pool")(x, is_token)
        # Maximum before the root: in a row of padding only, the root of 0 would have a NaN gradient.
        return pooled * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(pooled), axis=-1, keepdims=True), 1e-24))
