"""Int8 parameters of a whole model: which of them are quantized, and the shapes that they then have."""

import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from transformer_jax.errors import UserError
from transformer_jax.models import Params
from transformer_jax.nn.layers import num_input_axes
from transformer_jax.nn.quantization import to_int8

EMBEDDINGS = ("tokens", "positions", "types", "shared")  # names of the modules that are a `layers.Embedding`
Path = tuple[str, ...]  # of a parameter: "stack", "block_0", "attention", "query", "kernel"


def quantize_params(params: Params, is_chosen: Callable[[Path], bool] = lambda path: True, path: Path = ()) -> Params:
    """Quantize kernels (one scale per output) and embeddings (one scale per row), each in its place.

    Norms, biases and other small parameters stay as they are.

    Args:
      params: arrays of the modules below `path`.
      is_chosen: tells for the path of a kernel or an embedding.
    """
    quantized = {}
    for name, child in params.items():
        inner = (*path, name)
        if isinstance(child, dict):
            child = quantize_params(child, is_chosen, inner)
        elif (name == "kernel" or (name == "embedding" and path[-1] in EMBEDDINGS)) and is_chosen(inner):
            matrix = jnp.asarray(child)
            if name == "kernel":
                fan_in = math.prod(matrix.shape[: num_input_axes(inner, matrix.ndim)])
                matrix = matrix.reshape(fan_in, -1).T
            child = to_int8(matrix)._asdict()
        quantized[name] = child
    return quantized


def int8_paths(params: Params) -> list[Path]:
    """Paths of the parameters that are int8."""
    if params.keys() == {"numbers", "scales"}:
        return [()]
    children = {name: child for name, child in params.items() if isinstance(child, dict)}
    return [(name, *path) for name, child in children.items() for path in int8_paths(child)]


def dtype_key(path: Path) -> str:
    """The name of a parameter in `with_dtypes`."""
    return jax.tree_util.keystr(tuple(map(jax.tree_util.DictKey, path)))


def with_dtypes(shapes: Params, dtypes: Mapping[str, str]) -> Params:
    """Shapes of parameters with their types on disk.

    Args:
      dtypes: by `dtype_key`, those that are not float32.
    Raises:
      UserError: int8, and neither a kernel nor an embedding of a layer.
    """
    floats = {key: dtype for key, dtype in dtypes.items() if dtype != "int8"}

    def with_dtype(path, leaf):
        return jax.ShapeDtypeStruct(leaf.shape, floats.get(jax.tree_util.keystr(path), leaf.dtype))

    typed = jax.tree_util.tree_map_with_path(with_dtype, shapes)
    chosen = dtypes.keys() - floats.keys()
    if not chosen:
        return typed
    small = jax.eval_shape(functools.partial(quantize_params, is_chosen=lambda path: dtype_key(path) in chosen), typed)
    if wrong := chosen - set(map(dtype_key, int8_paths(small))):
        raise UserError(f"param_dtypes: {min(wrong):.200} is no kernel or embedding of the model, so never int8.")
    return small
