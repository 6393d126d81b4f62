"""Linear layers, norms, feed-forward variants and the token embedding.

Parameters are float32; computation is in `dtype`. Every leaf is named `kernel`, `bias`, `scale` or `embedding`, and
the optimizer chooses weight decay and the like by these names.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import choose
from transformer_jax.nn import adapters, quantization


class Dense(nn.Module):
    """Linear layer from the last `num_in` axes to `out_shape`.

    The kernel has the shape [*in_shape, *out_shape], such as [D, N, H]. The product itself is flattened to two
    dimensions: XLA on a CPU needs twice the time for the gradient of [B, T, D] @ [D, F] that it needs for
    [B*T, D] @ [D, F].
    """

    out_shape: tuple[int, ...]
    num_in: int = 1
    use_bias: bool = True
    init_std: float = 0.02
    dtype: str = "float32"
    is_output: bool = False  # returns float32, not rounded to dtype: logits

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [..., *in_shape] -> [..., *out_shape]
        batch_shape, in_shape = x.shape[: -self.num_in], x.shape[-self.num_in :]
        fan_in = math.prod(in_shape)
        fan_out = math.prod(self.out_shape)
        adapter = adapters.of_layer(self)  # {} unless the model is adapted
        x = adapters.scale_inputs(adapter, x.astype(self.dtype).reshape(-1, fan_in), batch_shape[0])
        stored = quantization.stored(self, "kernel")
        if stored:
            x = x.astype(jnp.float32) if self.is_output else x
            y = quantization.matmul(x, stored)
            kernel = quantization.dequantize(stored, self.dtype).T
        else:
            kernel = self.param("kernel", nn.initializers.normal(self.init_std), (*in_shape, *self.out_shape))
            kernel = kernel.astype(self.dtype).reshape(fan_in, fan_out)
            is_rounded = self.is_output and x.dtype != jnp.float32
            y = einsum_float32("RD,DF->RF", x, kernel) if is_rounded else matmul(x, kernel)
        y = adapters.add_low_rank(adapter, x, y, kernel, batch_shape[0])
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, self.out_shape)
            # In float32, also for the gradient: a sum over all tokens.
            y = (y.astype(jnp.float32) + bias.reshape(fan_out)).astype(y.dtype)
        return adapters.scale_outputs(adapter, y, batch_shape[0]).reshape(*batch_shape, *self.out_shape)


NUM_PARTS = 8


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Matrix product of x [R, D] and a kernel [D, F], fast for a single row on a CPU, as in a decode step.

    For one row XLA on a CPU uses one thread, which cannot read memory as fast as two or more can. Splitting D into
    parts gives as many products at once, and their sum: a token of GPT-2 then takes a tenth less time.
    """
    num_rows, width = x.shape
    if num_rows > 1 or width % NUM_PARTS or jax.default_backend() != "cpu":
        return x @ kernel
    parts = jnp.einsum("PD,PDF->PF", x.reshape(NUM_PARTS, -1), kernel.reshape(NUM_PARTS, width // NUM_PARTS, -1))
    return jnp.sum(parts, axis=0, keepdims=True)


def einsum_float32(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Product of two arrays in their own type, accumulated and returned in float32: attention scores and logits.

    In bfloat16 the gradient rounds to bfloat16 first, as for any other product. Without that the products of a
    gradient would be of float32 with bfloat16, and XLA would compute them in float32.
    """
    is_float32 = jnp.result_type(a, b) == jnp.float32
    return (_einsum_float32 if is_float32 else _einsum_of_rounded)(subscripts, a, b)


def _einsum_float32(subscripts, a, b):
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _einsum_of_rounded(subscripts, a, b):
    return _einsum_float32(subscripts, a, b)


def _einsum_forward(subscripts, a, b):
    return _einsum_float32(subscripts, a, b), (a, b)


def _einsum_backward(subscripts, saved, d_out):
    out, pull_back = jax.vjp(functools.partial(jnp.einsum, subscripts), *saved)
    return pull_back(d_out.astype(out.dtype))


_einsum_of_rounded.defvjp(_einsum_forward, _einsum_backward)


def num_input_axes(path: tuple[str, ...], ndim: int) -> int:
    """Number of input axes of the kernel at `path`: two for attention's output projection from [N, H], else one."""
    return 2 if path[-2] == "out" and ndim == 3 else 1


@jax.custom_vjp
def normalize(x: jax.Array, epsilon: float) -> jax.Array:
    """Root-mean-square normalization: x / sqrt(mean of squares + epsilon) over the last axis.

    The gradient is written out (dy - y * mean(dy * y), over the same root) because automatic differentiation
    needs more passes over the activations on a CPU.
    """
    return _normalize_forward(x, epsilon)[0]


def _normalize_forward(x, epsilon):
    inverse_rms = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)
    return x * inverse_rms, (x, inverse_rms)


def _normalize_backward(saved, dy):
    x, inverse_rms = saved
    y = x * inverse_rms
    return inverse_rms * (dy - y * jnp.mean(dy * y, axis=-1, keepdims=True)), None


normalize.defvjp(_normalize_forward, _normalize_backward)


class LayerNorm(nn.Module):
    """LayerNorm: (x - mean) / sqrt(variance + epsilon) * scale + bias, in float32. Ba et al. 2016, equation 4."""

    epsilon: float
    has_scale: bool = True
    has_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [..., D]
        x32 = x.astype(jnp.float32)
        y = normalize(x32 - jnp.mean(x32, axis=-1, keepdims=True), self.epsilon)
        if self.has_scale:
            y = y * self.param("scale", nn.initializers.ones, x.shape[-1:])
        if self.has_bias:
            y = y + self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return y.astype(x.dtype)


class RMSNorm(nn.Module):
    """RMSNorm: x / sqrt(mean of squares + epsilon) * scale, in float32. Zhang & Sennrich 2019, equation 4.

    With `plus_one` the factor is 1 + scale, so that a scale of 0 is neutral. Gemma Team 2024.
    """

    epsilon: float
    plus_one: bool = False
    num_axes: int = 1  # number of last axes that are normalized together

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [..., D]
        flat = x.astype(jnp.float32).reshape(*x.shape[: x.ndim - self.num_axes], -1)
        init = nn.initializers.zeros if self.plus_one else nn.initializers.ones
        scale = self.param("scale", init, flat.shape[-1:])
        factor = 1.0 + scale if self.plus_one else scale
        return (normalize(flat, self.epsilon) * factor).astype(x.dtype).reshape(x.shape)


NORMS: dict[str, Callable[..., nn.Module]] = {
    "layernorm": LayerNorm,
    "layernorm_no_bias": functools.partial(LayerNorm, has_bias=False),
    "layernorm_no_parameters": functools.partial(LayerNorm, has_scale=False, has_bias=False),  # OLMo 1
    "rmsnorm": RMSNorm,
    "rmsnorm_plus_one": functools.partial(RMSNorm, plus_one=True),  # Gemma
}


def make_norm(config: TransformerConfig, name: str | None = None) -> nn.Module:
    """Create the norm layer named by `config.norm`."""
    return choose(NORMS, config.norm, "model.norm")(epsilon=config.norm_epsilon, name=name)


QK_NORMS = {"none": 0, "head": 1, "all": 2}  # number of last axes of [B, T, N, H] that are normalized together


def make_qk_norm(config: TransformerConfig) -> Callable[[jax.Array], jax.Array]:
    """Create the norm of queries or keys named by `config.qk_norm`; the identity if there is none.

    With a norm, scores cannot grow without bound. Dehghani et al. 2023, section 2.
    """
    num_axes = choose(QK_NORMS, config.qk_norm, "model.qk_norm")
    plus_one = config.norm == "rmsnorm_plus_one"  # Gemma 3: all norms of a model are of one kind
    return RMSNorm(config.norm_epsilon, plus_one, num_axes) if num_axes else lambda x: x


class FeedForwardVariant(NamedTuple):
    """Activation of a feed-forward layer, gated (GLU) or not."""

    activation: Callable[[jax.Array], jax.Array]
    is_gated: bool  # the activation multiplies a second projection


@jax.custom_vjp
def _gelu(x: jax.Array) -> jax.Array:
    """GELU: x P(x), with P the distribution function of the standard normal. Hendrycks & Gimpel 2016, section 2.

    jax.nn.gelu uses erfc(-x) for 1 + erf(x): more exact far below 0, where both vanish, at twice the cost on a CPU.
    """
    return _gelu_forward(x)[0]


def _gelu_forward(x):
    return x * _normal_distribution(x), x


def _gelu_backward(x, dy):
    # The barrier makes XLA compute P(x) again. Otherwise it keeps P(x), as large as x, from the forward pass.
    x = jax.lax.optimization_barrier(x)
    density = jnp.exp(-0.5 * jnp.square(x)) / math.sqrt(2.0 * math.pi)
    return (dy * (_normal_distribution(x) + x * density),)


def _normal_distribution(x):
    return 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


_gelu.defvjp(_gelu_forward, _gelu_backward)

_gelu_tanh = functools.partial(jax.nn.gelu, approximate=True)

FEED_FORWARDS = {
    "relu": FeedForwardVariant(jax.nn.relu, False),  # Vaswani et al. 2017, equation 2
    "gelu": FeedForwardVariant(_gelu, False),
    "gelu_tanh": FeedForwardVariant(_gelu_tanh, False),  # as GPT-2 computes it
    "silu": FeedForwardVariant(jax.nn.silu, False),  # Ramachandran et al. 2017, "swish"; Marian
    "squared_relu": FeedForwardVariant(lambda x: jnp.square(jax.nn.relu(x)), False),  # So et al. 2021, section 3
    "swiglu": FeedForwardVariant(jax.nn.silu, True),  # Shazeer 2020, equation 6
    "geglu": FeedForwardVariant(_gelu, True),  # the same equation
    "geglu_tanh": FeedForwardVariant(_gelu_tanh, True),  # as T5 v1.1 computes it
}


class FeedForward(nn.Module):
    """Feed-forward layer: down(f(up(x))), or down(f(gate(x)) * up(x)) where the variant is gated."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B, T, D]
        config = self.config
        variant = choose(FEED_FORWARDS, config.feed_forward, "model.feed_forward")
        dense = functools.partial(Dense, use_bias=config.mlp_bias, init_std=config.init_std, dtype=config.dtype)
        hidden = dense((config.d_ff,), name="up")(x)
        if variant.is_gated:
            hidden = variant.activation(dense((config.d_ff,), name="gate")(x)) * hidden
        else:
            hidden = variant.activation(hidden)
        return dense((config.d_model,), init_std=output_std(config), name="down")(hidden)


def output_std(config: TransformerConfig) -> float:
    """Initial standard deviation of a kernel that writes to the residual stream.

    Each of the 2 L such layers adds variance; the factor 1/sqrt(2 L) keeps the variance of the sum constant. Radford
    et al. 2019, section 2.3. With zero_init, the whole model starts as the identity (Zhang et al. 2019, section 3).
    """
    if config.zero_init:
        return 0.0
    return config.init_std / math.sqrt(2 * config.num_layers)


class Embedding(nn.Module):
    """Embedding table [V, D]: a lookup for the input and, with tied embeddings, the output projection."""

    num_rows: int
    width: int
    init_std: float
    dtype: str

    def setup(self):
        init = nn.initializers.normal(self.init_std)
        stored = quantization.stored(self, "embedding")
        self.embedding = stored or self.param("embedding", init, (self.num_rows, self.width))

    def __call__(self, ids: jax.Array) -> jax.Array:  # [B, T] -> [B, T, D]
        x = quantization.dequantize(jax.tree.map(lambda table: table[ids], self.embedding), self.dtype)
        return adapters.embed(adapters.of_layer(self), ids, x)

    def unembed(self, x: jax.Array) -> jax.Array:  # [..., D] -> [..., V] float32
        flat = x.reshape(-1, self.width)
        table = self.embedding
        if isinstance(table, quantization.Int8):
            logits = quantization.matmul(flat.astype(jnp.float32), table)
        else:
            logits = einsum_float32("RD,DV->RV", flat, table.astype(self.dtype).T)
        return logits.reshape(*x.shape[:-1], self.num_rows)
