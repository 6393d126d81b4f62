"""Linear layers, norms, feed-forward variants and the token embedding.

Parameters are float32; computation is in `dtype`. A leaf is named for what it is: `kernel`, `bias`,
`scale` or `embedding`, and the optimizer chooses by these names.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.config import TransformerConfig, choose


class Dense(nn.Module):
    """A linear map from the last `num_in` axes to `out_shape`.

    The kernel has the shape [*in_shape, *out_shape], say [D, N, H], for everyone who reads or writes it.
    The product itself is of two dimensions: XLA on a CPU needs twice the time for the gradient of
    [B, T, D] @ [D, F] that it needs for [B*T, D] @ [D, F].
    """

    out_shape: tuple[int, ...]
    num_in: int = 1
    use_bias: bool = True
    init_std: float = 0.02
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [..., *in_shape] -> [..., *out_shape]
        batch_shape, in_shape = x.shape[: -self.num_in], x.shape[-self.num_in :]
        fan_in, fan_out = math.prod(in_shape), math.prod(self.out_shape)
        kernel = self.param("kernel", nn.initializers.normal(self.init_std), (*in_shape, *self.out_shape))
        y = x.astype(self.dtype).reshape(-1, fan_in) @ kernel.astype(self.dtype).reshape(fan_in, fan_out)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, self.out_shape)
            y = y + bias.astype(self.dtype).reshape(fan_out)
        return y.reshape(*batch_shape, *self.out_shape)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, in float32. Ba et al. 2016, equation 4."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [..., D]
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(x.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean of squares + epsilon) * scale, in float32. Zhang & Sennrich 2019, equation 4."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [..., D]
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        x32 = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        return (x32 * jax.lax.rsqrt(mean_square + self.epsilon) * scale).astype(x.dtype)


NORMS = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}


def make_norm(config: TransformerConfig, name: str | None = None) -> nn.Module:
    """The norm that `config.norm` names."""
    return choose(NORMS, config.norm, "model.norm")(epsilon=config.norm_epsilon, name=name)


class FeedForwardVariant(NamedTuple):
    """An activation, and whether it opens a gate on a second projection."""

    activation: Callable[[jax.Array], jax.Array]
    is_gated: bool


FEED_FORWARDS = {
    "gelu": FeedForwardVariant(functools.partial(jax.nn.gelu, approximate=False), False),  # Hendrycks & Gimpel 2016
    "gelu_tanh": FeedForwardVariant(functools.partial(jax.nn.gelu, approximate=True), False),  # as GPT-2 computes it
    "swiglu": FeedForwardVariant(jax.nn.silu, True),  # Shazeer 2020, equation 6
}


class FeedForward(nn.Module):
    """down(f(up(x))), or down(f(gate(x)) * up(x)) where the variant is gated."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B, T, D]
        config = self.config
        variant = choose(FEED_FORWARDS, config.feed_forward, "model.feed_forward")
        dense = functools.partial(Dense, use_bias=config.use_bias, init_std=config.init_std, dtype=config.dtype)
        hidden = dense((config.d_ff,), name="up")(x)
        if variant.is_gated:
            hidden = variant.activation(dense((config.d_ff,), name="gate")(x)) * hidden
        else:
            hidden = variant.activation(hidden)
        return dense((config.d_model,), init_std=output_std(config), name="down")(hidden)


def output_std(config: TransformerConfig) -> float:
    """Initial standard deviation of a layer that writes to the residual stream.

    Each of the 2 L writers adds variance; 1/sqrt(2 L) keeps the sum's in place. Radford et al. 2019, section 2.3.
    """
    return config.init_std / math.sqrt(2 * config.num_layers)


class Embedding(nn.Module):
    """A table [V, D]: looked up on the way in, and where embeddings are tied multiplied with on the way out."""

    num_rows: int
    width: int
    init_std: float
    dtype: str

    def setup(self):
        self.embedding = self.param("embedding", nn.initializers.normal(self.init_std), (self.num_rows, self.width))

    def __call__(self, ids: jax.Array) -> jax.Array:  # [B, T] -> [B, T, D]
        return self.embedding[ids].astype(self.dtype)

    def unembed(self, x: jax.Array) -> jax.Array:  # [..., D] -> [..., V]
        table = self.embedding.astype(self.dtype)
        return (x.reshape(-1, self.width) @ table.T).reshape(*x.shape[:-1], self.num_rows)
