"""Dropout, and the hash that generates its masks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class Dropout(nn.Module):
    """Dropout: in training, set a random share `rate` to 0 and scale up the others. Srivastava et al. 2014."""

    rate: float

    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        """Apply dropout to x of any shape. In training (deterministic=False) it needs an rng named "dropout"."""
        if deterministic or self.rate == 0:
            return x
        return drop(x, self.rate, self.make_rng("dropout"))


def drop(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Drop each element of `x` with probability `rate` (at least 0, below 1); divide the others by 1 - rate."""
    return jnp.where(keep_mask(key, rate, x.shape), x / (1.0 - rate), 0.0).astype(x.dtype)


def keep_mask(key: jax.Array, rate: float | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Dropout mask, bool of `shape`, True with probability 1 - rate: a function of the key and each element's index.

    A hash of the index replaces JAX's generator, which costs five times as much on a CPU, more than the activations
    themselves, and was 15 % of the step of a small Transformer (BUILD_NOTES.md). The gradient keeps only the key: the
    hash is computed again where it is used.
    """
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    index = jnp.uint32(0)
    stride = 1
    for axis in reversed(range(len(shape))):  # not a reshaped range: devices could not shard that
        index += lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    bits = _mix(_mix(index + first) ^ second)
    if isinstance(rate, jax.Array):
        return bits >= (rate * 2.0**32).astype(jnp.uint32)
    return bits >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


def _mix(bits: jax.Array) -> jax.Array:
    """Hash finalizer, a bijection of 32 bits: each input bit flips about half of the output bits.

    The last steps of MurmurHash3 (Appleby 2011).
    """
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)
