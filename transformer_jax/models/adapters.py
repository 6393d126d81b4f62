"""Adapters of a whole model: a tree of layers, as nn/adapters.py describes them, merged into its parameters."""

import jax.numpy as jnp

from transformer_jax.models import Params
from transformer_jax.nn.adapters import merge_weight


def merge(params: Params, layers: Params) -> Params:
    """Merge adapters into the parameters of their layers: the same function without adapters."""
    merged = dict(params)
    for name, child in layers.items():
        if isinstance(child, dict):
            merged[name] = merge(params[name], child)
    for leaf in ("kernel", "embedding"):
        if leaf in params and layers:
            merged[leaf] = merge_weight(layers, jnp.asarray(params[leaf], jnp.float32)).astype(params[leaf].dtype)
    if "ia3_out" in layers and "bias" in params:
        bias = params["bias"]
        merged["bias"] = (bias * layers["ia3_out"].reshape(bias.shape)).astype(bias.dtype)
    return merged
