"""Adapters of a whole model: their layers and shapes, beside its parameters, merged into them, stacked for a batch.

In training and in checkpoints one tree has both: the parameters, and under the name ADAPTERS the layers that
nn/adapters.py describes.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from transformer_jax.errors import UserError, choose
from transformer_jax.models import Model, Params, parameter_shapes, path_names
from transformer_jax.nn.adapters import merge_weight
from transformer_jax.nn.layers import num_input_axes

ADAPTERS = "adapters"  # collection of a model's variables, and name beside its parameters; no module is called so

PREFIX = "prefix"  # name in the tree of adapters of the numbers of a trained prefix; no module is called so

# kind -> arrays of a layer by their axes: "in", "out", "rank", or 1. IA3 has one of its two, see `layer_shapes`.
# Those without any are before the text: see `prefix_shape`.
KINDS: dict[str, dict[str, tuple[str, ...]]] = {
    "lora": {"lora_in": ("in", "rank"), "lora_out": ("rank", "out"), "scale": ("one",)},
    "dora": {"lora_in": ("in", "rank"), "lora_out": ("rank", "out"), "scale": ("one",), "magnitude": ("out",)},
    "ia3": {"ia3_in": ("in",), "ia3_out": ("out",)},
    "prefix": {},
    "prompt": {},
}
PREFIX_KINDS = tuple(kind for kind, arrays in KINDS.items() if not arrays)


@dataclasses.dataclass(frozen=True)
class AdapterSpec:
    """Kind, rank and layers of an adapter, or tokens: with the model, all that the shapes of its arrays follow from."""

    kind: str  # one of KINDS
    rank: int  # 0: the kind has none
    layers: tuple[str, ...]  # "stack/block_0/attention/query"
    num_tokens: int = 0  # of a trained prefix; 0: the kind has none


def linear_layers(model: Model) -> dict[str, tuple[int, int]]:
    """Linear layers of a model, "stack/block_0/attention/query", with their numbers of inputs and of outputs."""
    layers = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameter_shapes(model)):
        *modules, last = names = path_names(path)
        if last == "kernel":
            num_in = num_input_axes(names, leaf.ndim)
            layers["/".join(modules)] = math.prod(leaf.shape[:num_in]), math.prod(leaf.shape[num_in:])
    return layers


def layer_shapes(name: str, spec: AdapterSpec, fan_in: int, fan_out: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the arrays of one layer. IA3 scales the inputs of the second feed-forward layer, else outputs."""
    sizes = {"in": fan_in, "out": fan_out, "rank": spec.rank, "one": 1}
    arrays = choose(KINDS, spec.kind, "adapter.kind")
    if spec.kind == "ia3":
        chosen = "ia3_in" if name.endswith("/down") else "ia3_out"
        arrays = {chosen: arrays[chosen]}
    elif not 1 <= spec.rank <= min(fan_in, fan_out):
        raise UserError(
            f"adapter.rank={spec.rank}: must be at least 1, and at most {min(fan_in, fan_out)}, the smaller side of "
            f"{name:.200} with {fan_in} inputs and {fan_out} outputs."
        )
    return {leaf: jax.ShapeDtypeStruct(tuple(sizes[axis] for axis in axes), "float32") for leaf, axes in arrays.items()}


def adapter_shapes(model: Model, spec: AdapterSpec) -> Params:
    """Shapes of an adapter's arrays, as a tree.

    Raises:
      UserError: an unknown kind, a layer that the model does not have, a rank that is larger than a layer.
    """
    if spec.kind in PREFIX_KINDS:
        return {PREFIX: jax.ShapeDtypeStruct(prefix_shape(model, spec), "float32")}
    known = linear_layers(model)
    shapes: Params = {}
    for name in spec.layers:
        if name not in known:
            raise UserError(f"adapter: the model has no linear layer {name!r:.200}.")
        *modules, last = name.split("/")
        tree = functools.reduce(lambda tree, module: tree.setdefault(module, {}), modules, shapes)
        tree[last] = layer_shapes(name, spec, *known[name])
    return shapes


def prefix_shape(model: Model, spec: AdapterSpec) -> tuple[int, ...]:
    """Shape of a trained prefix, as `models.prefix.trained_prefix` takes it.

    Raises:
      UserError: no token, more than the context has room for, or keys and values for linear attention.
    """
    is_prompt = spec.kind == "prompt"
    side = model.config.encoder if is_prompt else model.config.decoder
    if not 1 <= spec.num_tokens < side.max_len:
        raise UserError(
            f"adapter.num_tokens={spec.num_tokens}: must be at least 1, and below the context of {side.max_len}, which "
            f"has the text, too. Take {max(1, side.max_len // 2)} or fewer."
        )
    if is_prompt:
        return (spec.num_tokens, side.d_model)
    if side.attention == "linear":
        raise UserError(
            "adapter.kind='prefix': linear attention has sums of keys and values. Take adapter.kind=prompt."
        )
    return (spec.num_tokens, 2 * side.num_layers, side.num_kv_heads, side.head_dim)


def all_shapes(model: Model, spec: AdapterSpec | None) -> Params:
    """Shapes of a model's parameters and, under ADAPTERS, of its adapter; errors as `adapter_shapes`."""
    return with_adapter(parameter_shapes(model), adapter_shapes(model, spec) if spec else {})


def with_adapter(params: Params, layers: Params) -> Params:
    """One tree of parameters and adapter; the inverse of `variables_of`."""
    return {**params, ADAPTERS: layers} if layers else params


def variables_of(params: Params, dropout: float = 0.0) -> Params:
    """The variables of a model, for `apply`, from a tree that may hold an adapter.

    Args:
      dropout: in training, the share of the inputs of `lora_in` that are dropped.
    """
    if ADAPTERS not in params:
        return {"params": params}
    layers = _with_dropout(params[ADAPTERS], dropout) if dropout else params[ADAPTERS]
    return {"params": {name: child for name, child in params.items() if name != ADAPTERS}, ADAPTERS: layers}


def _with_dropout(layers: Params, rate: float) -> Params:
    nested = {name: _with_dropout(child, rate) if isinstance(child, dict) else child for name, child in layers.items()}
    return nested | {"dropout": jnp.float32(rate)} if "lora_in" in nested else nested


NEUTRAL = {  # of a layer that an adapter does not change, or not by such an array
    "lora_in": 0.0,
    "lora_out": 0.0,
    "scale": 0.0,
    "magnitude": jnp.nan,  # plain LoRA: 1 would give the columns the norms that they have without it
    "ia3_in": 1.0,
    "ia3_out": 1.0,
}


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


def stack(adapters: Sequence[Params]) -> Params:
    """Stack adapters of one model, of any kinds, layers and ranks: each array with an axis of adapters in front.

    Ranks are padded with zeros. {} is the model without an adapter.
    """
    stacked: Params = {}
    for name in sorted({name for adapter in adapters for name in adapter}):
        children = [adapter.get(name) for adapter in adapters]
        if name not in NEUTRAL:
            stacked[name] = stack([child or {} for child in children])
            continue
        shapes = [child.shape for child in children if child is not None]
        shape = tuple(map(max, *shapes)) if len(shapes) > 1 else shapes[0]
        arrays = jnp.full((len(adapters), *shape), NEUTRAL[name], jnp.float32)
        for i, child in enumerate(children):
            if child is not None:
                arrays = arrays.at[(i, *map(slice, child.shape))].set(child)
        stacked[name] = arrays
    return stacked


def with_rows(stacked: Params, rows: Sequence[int]) -> Params:
    """Add to every layer of stacked adapters the index of the adapter of each row of a batch."""
    layers: Params = {name: with_rows(child, rows) for name, child in stacked.items() if isinstance(child, dict)}
    arrays = {name: child for name, child in stacked.items() if not isinstance(child, dict)}
    return layers | arrays | ({"rows": jnp.asarray(rows, jnp.int32)} if arrays else {})
