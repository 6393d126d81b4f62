"""Numbers of 8 bits for weights and caches: a quarter of float32's memory, and of what a decode step reads of it.

Symmetric, a scale for each vector: x is about `numbers * scale`, off by half a scale at most (Dettmers et al. 2022,
section 2.1, "vector-wise quantization"). Products are of floating-point numbers: what is multiplied is exact.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

BLOCK = 64  # rows of a kernel that are made floats at once, so that they stay in a processor's cache


class Int8(NamedTuple):
    """Vectors along the last axis, each over a scale of its own."""

    numbers: jax.Array  # int8 [..., D], from -127 to 127
    scales: jax.Array  # float32 [..., 1]


def to_int8(x: jax.Array) -> Int8:
    """Vectors [..., D] rounded to 127 steps on either side of 0; one of zeros stays so."""
    x = x.astype(jnp.float32)
    scales = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127.0
    return Int8(jnp.round(x / jnp.where(scales == 0.0, 1.0, scales)).astype(jnp.int8), scales)


def read(x: Any, dtype: Any) -> jax.Array:
    """An Int8, or an array, as an array of `dtype`."""
    return (x.numbers * x.scales).astype(dtype) if isinstance(x, Int8) else x.astype(dtype)


def product(x: jax.Array, kernel: Int8) -> jax.Array:
    """x [R, D] times a kernel whose vectors are columns, [D, F]; it is stored by columns, [F, D]. Returns [R, F].

    XLA on a CPU would make all of the kernel float32 before it multiplies, and so read more than without int8. In
    blocks it reads 8 bits a weight: for one row in less than half of float32's time.
    """
    R, (F, D) = len(x), kernel.numbers.shape

    def columns(block):
        block = block.astype(x.dtype)
        return x @ block.T if R == 1 else (block @ x.T).T  # XLA is fast at these two

    def of_block(i):
        return columns(jax.lax.dynamic_slice(kernel.numbers, (i * BLOCK, 0), (BLOCK, D)))

    num_blocks, rest = divmod(F, BLOCK)
    parts = [columns(kernel.numbers[F - rest :])]
    if num_blocks:
        parts.insert(0, jax.lax.map(of_block, jnp.arange(num_blocks)).swapaxes(0, 1).reshape(R, F - rest))
    return (jnp.concatenate(parts, axis=1) * kernel.scales[:, 0]).astype(x.dtype)
