"""Limits of a device, measured: the rate of a large matrix product, and the bandwidth of its memory."""

import statistics
import time

import jax
import jax.numpy as jnp


def seconds_of(function, *args: jax.Array, calls: int = 10, rounds: int = 3) -> float:
    """Seconds of one call: the median of rounds, each of `calls` that are waited for together."""
    jax.block_until_ready(function(*args))
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(calls):
            out = function(*args)
        jax.block_until_ready(out)
        seconds.append((time.perf_counter() - began) / calls)
    return statistics.median(seconds)


def product_tflops(size: int, dtype: str = "bfloat16") -> float:
    """Rate of a product of two square matrices of random numbers, in 10^12 operations a second."""
    keys = jax.random.split(jax.random.key(0))
    x, y = (jax.random.normal(key, (size, size), dtype) for key in keys)
    return 2 * size**3 / seconds_of(jax.jit(jnp.matmul), x, y) / 1e12


def copy_bandwidth(num_bytes: int) -> float:
    """Bytes a second that a copy within the device's memory reads and writes, together."""
    x = jnp.zeros(num_bytes // 4, jnp.float32)
    return 2 * num_bytes / seconds_of(jax.jit(lambda x: x + 1), x)
