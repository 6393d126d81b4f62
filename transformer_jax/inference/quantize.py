"""A run with weights of 8 bits, for decoding in less memory: what each linear layer and embedding multiplies with."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from transformer_jax.nn.layers import num_input_axes
from transformer_jax.nn.quantization import to_int8
from transformer_jax.run import Run

TABLES = ("tokens", "positions", "types", "shared")  # embeddings that are looked up by `layers.Embedding`


def quantize(run: Run) -> Run:
    """The run with int8 in place of its kernels (a scale for each output) and embeddings (a scale for each row).

    Norms, biases and all that is small stay as they are. For use, not to be saved or trained.
    """
    return dataclasses.replace(run, params=_quantize(run.params, ()))


def _quantize(params: Any, path: tuple[str, ...]) -> Any:
    """Every Dense's and Embedding's dict of parameters, with `int8` instead of `kernel` or `embedding`."""
    if not hasattr(params, "items"):
        return params
    params = {name: _quantize(value, (*path, name)) for name, value in params.items()}
    if "kernel" in params:
        kernel = jnp.asarray(params.pop("kernel"))
        fan_in = math.prod(kernel.shape[: num_input_axes((*path, "kernel"), kernel.ndim)])
        params["int8"] = to_int8(kernel.reshape(fan_in, -1).T)
    elif "embedding" in params and path[-1] in TABLES:
        params["int8"] = to_int8(params.pop("embedding"))
    return params
