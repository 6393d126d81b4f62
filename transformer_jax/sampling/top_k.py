"""Top-k of the rows of a matrix: the k largest values, and a mask of them for a k that is a traced number."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

CHUNK = 128  # values in a chunk of `largest`
TIERS = (64, 256)  # for k up to each of these, `largest` finds as many values; above, `is_top_k` bisects


def largest(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Top-k of each row: the values and indices of `jax.lax.top_k(x, k)` for [R, N]; ties go to the lower index.

    On a CPU `jax.lax.top_k` scans a row one by one. The maxima of chunks are found in vectorized code, and the k
    largest values of a row are all in the k chunks with the largest maxima.
    """
    R, N = x.shape
    num_chunks = -(-N // CHUNK)
    if num_chunks <= k:
        return jax.lax.top_k(x, k)
    chunks = jnp.pad(x, ((0, 0), (0, num_chunks * CHUNK - N)), constant_values=-jnp.inf).reshape(R, num_chunks, CHUNK)
    # Sorted back into the order of the chunks, so that ties go to the lower index.
    best = jnp.sort(jax.lax.top_k(jnp.max(chunks, axis=2), k)[1], axis=1)
    values, indices = jax.lax.top_k(jnp.take_along_axis(chunks, best[:, :, None], axis=1).reshape(R, k * CHUNK), k)
    return values, jnp.take_along_axis(best, indices // CHUNK, axis=1) * CHUNK + indices % CHUNK


def is_top_k(x: jax.Array, k: jax.Array | int) -> jax.Array:
    """Mark the k largest values of each row [R, N] for any number k; ties go to the lower index: bool [R, N]."""

    def among_largest(tier, x):
        indices = largest(x, tier)[1]
        rows = jnp.arange(len(x))[:, None]
        return jnp.zeros(x.shape, bool).at[rows, indices].set(jnp.arange(tier) < k)

    k = jnp.asarray(k)
    tiers = sorted({min(tier, x.shape[1]) for tier in TIERS})
    branches: list[Callable] = [functools.partial(among_largest, tier) for tier in tiers]
    if tiers[-1] < x.shape[1]:
        branches.append(lambda x: _bisect(x, k))
    index = sum((k > tier).astype(jnp.int32) for tier in tiers[: len(branches) - 1])
    return jax.lax.switch(index, branches, x)


def _bisect(x, k):
    """Mark the k largest values of each row by bisection: in time that does not grow with k, without a sort."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    bits ^= (bits >> 31) & 0x7FFFFFFF  # integers in the order of the floats

    def count(is_counted):
        return jnp.sum(is_counted, axis=1, keepdims=True, dtype=jnp.int32)

    def highest(start, num_bits, holds):
        """Highest number from `start` on for which `holds` is true, bit by bit: [R, 1]."""

        def set_bit(i, number):
            higher = number + jnp.left_shift(jnp.int32(1), num_bits - 1 - i)
            return jnp.where(holds(higher), higher, number)

        return jax.lax.fori_loop(0, num_bits, set_bit, jnp.full((len(x), 1), start, jnp.int32))

    kth = highest(jnp.iinfo(jnp.int32).min, 32, lambda number: count(bits >= number) >= k)
    is_tie = bits == kth
    num_ties = k - count(bits > kth)
    position = jnp.arange(x.shape[1])
    end = highest(0, x.shape[1].bit_length(), lambda end: count(is_tie & (position < end)) <= num_ties)
    return (bits > kth) | (is_tie & (position < end))
