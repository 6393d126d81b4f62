"""Int8 quantization of weights and KV caches: a quarter of float32's memory, and of a decode step's memory traffic.

Symmetric, one scale for each vector: x is about `numbers * scale`, off by half a scale at most (Dettmers et al. 2022,
section 2.1, "vector-wise quantization"). Products are computed in floating point: only the storage is rounded.
In a tree of parameters a kernel or an embedding that is int8 is a dict of the two arrays, in its place.
"""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

MANY_ROWS = 128  # of inputs: from here on blocks are larger, since the product takes longer than the conversion
LARGE_BLOCK = 256
BLOCK = 64  # rows of a kernel that are converted to floats at once, so that they stay in a processor's cache


class Int8(NamedTuple):
    """Int8 array: vectors along the last axis, each with its own scale."""

    numbers: jax.Array  # int8 [..., D], from -127 to 127
    scales: jax.Array  # float32 [..., 1]


@jax.jit  # one program for each shape; one after the other, these operations compile eight, and keep copies of x
def to_int8(x: jax.Array) -> Int8:
    """Quantize vectors [..., D] to 127 steps on either side of 0; a vector of zeros stays exact."""
    x = x.astype(jnp.float32)
    scales = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127.0
    return Int8(jnp.round(x / jnp.where(scales == 0.0, 1.0, scales)).astype(jnp.int8), scales)


def stored(module: nn.Module, name: str) -> Int8 | None:
    """Return the parameter `name` of a module if it is int8: models/quantization.py put it there. Else None."""
    value: object = module.get_variable("params", name)
    return Int8(**value) if isinstance(value, Mapping) else None


def dequantize(x: jax.Array | Int8, dtype: DTypeLike) -> jax.Array:
    """Convert an Int8, or an array, to an array of `dtype`."""
    return (x.numbers * x.scales).astype(dtype) if isinstance(x, Int8) else x.astype(dtype)


@jax.custom_vjp
def matmul(x: jax.Array, kernel: Int8) -> jax.Array:
    """Matrix product of x [R, D] and an Int8 kernel [D, F], stored by columns as [F, D]: [R, F].

    XLA on a CPU would convert the whole kernel to float32 first, and so read more memory than without int8. In blocks
    it reads 8 bits a weight: for one row in less than half of float32's time. In training XLA would convert the kernels
    of all layers at the start; in blocks, in its gradient too, there are never floats of more than a block.
    """
    numbers, scales = kernel
    return (_product(x, numbers) * scales[:, 0]).astype(x.dtype)


def _block_size(num_rows: int) -> int:
    return LARGE_BLOCK if num_rows >= MANY_ROWS else BLOCK


def _product(x: jax.Array, numbers: jax.Array) -> jax.Array:
    """Product x [R, D] @ numbers.T [D, F], without the scales."""
    R = len(x)
    F, D = numbers.shape
    size = _block_size(R)

    def columns(block):
        block = block.astype(x.dtype)
        # Each is the faster one in XLA for this R.
        return x @ block.T if R == 1 or R >= MANY_ROWS else (block @ x.T).T

    def block_columns(i):
        return columns(jax.lax.dynamic_slice(numbers, (i * size, 0), (size, D)))

    num_blocks, rest = divmod(F, size)
    parts = [columns(numbers[F - rest :])]
    if num_blocks:
        parts.insert(0, jax.lax.map(block_columns, jnp.arange(num_blocks)).swapaxes(0, 1).reshape(R, F - rest))
    return jnp.concatenate(parts, axis=1)


def _matmul_forward(x, kernel):
    return matmul(x, kernel), kernel


def _matmul_backward(kernel, dy):
    """Gradient of the inputs; a kernel of integers has none. Automatic differentiation would keep it as floats."""
    dy = (dy * kernel.scales[:, 0]).astype(dy.dtype)
    numbers = kernel.numbers
    (R, F), D = dy.shape, numbers.shape[1]
    size = _block_size(R)

    def add_block(dx, i):
        block = jax.lax.dynamic_slice(numbers, (i * size, 0), (size, D))
        return dx + jax.lax.dynamic_slice(dy, (0, i * size), (R, size)) @ block.astype(dy.dtype), None

    num_blocks, rest = divmod(F, size)
    dx = dy[:, F - rest :] @ numbers[F - rest :].astype(dy.dtype)
    return (jax.lax.scan(add_block, dx, jnp.arange(num_blocks))[0] if num_blocks else dx), None


matmul.defvjp(_matmul_forward, _matmul_backward)
