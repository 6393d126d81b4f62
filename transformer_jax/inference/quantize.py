"""Quantize a run to int8 weights: the kernels of linear layers and the embeddings, for decoding in less memory."""

import dataclasses
import math

import jax.numpy as jnp

from transformer_jax.models import Params
from transformer_jax.nn.layers import num_input_axes
from transformer_jax.nn.quantization import to_int8
from transformer_jax.run import Run

EMBEDDINGS = ("tokens", "positions", "types", "shared")  # names of the modules that are a `layers.Embedding`


def quantize(run: Run) -> Run:
    """Quantize kernels (one scale per output) and embeddings (one scale per row) of a run to int8.

    Norms, biases and other small parameters stay as they are. The result cannot be saved or trained.
    """
    return dataclasses.replace(run, params=_quantize(run.params, ()))


def _quantize(params: Params, path: tuple[str, ...]) -> Params:
    """Replace `kernel` or `embedding` by `int8` in the parameters of every Dense and Embedding below `path`."""
    if not hasattr(params, "items"):
        return params
    params = {name: _quantize(value, (*path, name)) for name, value in params.items()}
    if "kernel" in params:
        kernel = jnp.asarray(params.pop("kernel"))
        fan_in = math.prod(kernel.shape[: num_input_axes((*path, "kernel"), kernel.ndim)])
        params["int8"] = to_int8(kernel.reshape(fan_in, -1).T)
    elif "embedding" in params and path[-1] in EMBEDDINGS:
        params["int8"] = to_int8(params.pop("embedding"))
    return params
