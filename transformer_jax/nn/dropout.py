"""Dropout, and the hash that chooses what is dropped."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class Dropout(nn.Module):
    """While training, zeros in the place of a random share `rate`, the others scaled up. Srivastava et al. 2014."""

    rate: float

    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        """x of any shape -> its shape. While training it needs an rng named "dropout"."""
        if deterministic or self.rate == 0:
            return x
        return drop(x, self.rate, self.make_rng("dropout"))


def drop(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """`x` with each element kept and divided by 1 - rate, or 0 with probability `rate` (at least 0, below 1)."""
    return jnp.where(keep_mask(key, rate, x.shape), x / (1.0 - rate), 0.0).astype(x.dtype)


def keep_mask(key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """True with probability 1 - rate, bool of `shape`: a function of the key and of each element's index alone.

    A hash of the index, not JAX's generator: on a CPU that costs five times as much, more than the activations cost
    that it thins out, and was 15 % of the step of a small Transformer (BUILD_NOTES.md). Nor is anything kept for the
    gradient but the key: the hash is computed where it is used.
    """
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    index, stride = jnp.uint32(0), 1
    for axis in reversed(range(len(shape))):  # not a reshaped range, which devices could not split among themselves
        index += lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    bits = _mix(_mix(index + first) ^ second)
    return bits >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


def _mix(bits: jax.Array) -> jax.Array:
    """A bijection of 32 bits where each bit that goes in turns about half of those that come out.

    The last steps of MurmurHash3 (Appleby 2011).
    """
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)
