"""Adapters in training: the layers that get one, its first values, and the parameters that are trained beside it."""

import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from transformer_jax.errors import UserError
from transformer_jax.models import Model, Params, SequenceClassifier, TokenTagger, path_names, split_params
from transformer_jax.models.adapters import ADAPTERS, PREFIX, PREFIX_KINDS, AdapterSpec, adapter_shapes, linear_layers

from .adapter_config import AdapterConfig
from .config import Config
from .optimizer import split_frozen
from .prefixes import first_prefix

PRESETS = {  # of adapter.where: patterns of the names of layers
    "attention": r"/block_\d+/(attention|cross)/",
    "all-linear": r"/block_\d+/",
}
DEFAULTS = {  # of adapter.where, by adapter.kind
    "lora": "attention",  # Hu et al. 2021, section 4.2
    "dora": "attention",
    "ia3": "/(key|value|down)$",  # Liu et al. 2022, section 3.3
}


def adapter_spec(model: Model, config: AdapterConfig) -> AdapterSpec | None:
    """Choose the layers of an adapter by `adapter.where`; None without `adapter.kind`.

    Raises:
      UserError: a pattern matches no linear layer, or `adapter.rank` is larger than a layer.
    """
    if not config.kind:
        return None
    if config.kind in PREFIX_KINDS:
        spec = AdapterSpec(config.kind, 0, (), config.num_tokens)
        adapter_shapes(model, spec)
        return spec
    known = linear_layers(model)
    chosen = set()
    for pattern in filter(None, (config.where or DEFAULTS[config.kind]).split(",")):
        matched = {name for name in known if re.search(PRESETS.get(pattern, pattern), name)}
        if not matched:
            examples = dict.fromkeys(re.sub(r"block_\d+", "block_0", name) for name in known)
            raise UserError(
                f"adapter.where: no linear layer has {pattern!r} in its name. There are: {', '.join(examples):.800}. "
                f"Or take {' or '.join(PRESETS)}."
            )
        chosen |= matched
    spec = AdapterSpec(config.kind, 0 if config.kind == "ia3" else config.rank, tuple(sorted(chosen)))
    adapter_shapes(model, spec)
    return spec


def first_adapter(model: Model, spec: AdapterSpec, config: AdapterConfig, key: jax.Array, params: Params) -> Params:
    """First values of an adapter: of a prefix, see `first_prefix`. Of layers, they change nothing.

    They are random for lora_in, 0 for lora_out, and 1 for all factors.
    """
    if spec.kind in PREFIX_KINDS:
        return {PREFIX: first_prefix(model, spec, params, jax.random.fold_in(key, 1))}
    scale = config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)
    leaves, structure = jax.tree_util.tree_flatten_with_path(adapter_shapes(model, spec))
    # Other keys than those of the parameters, which come from `key` itself.
    keys = jax.random.split(jax.random.fold_in(key, 1), len(leaves))

    def first(name: str, shape: tuple[int, ...], key: jax.Array) -> jax.Array:
        if name == "lora_in":  # as PEFT: He et al. 2015 with a = sqrt(5)
            bound = 1.0 / math.sqrt(shape[0])
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        return jnp.full(shape, {"lora_out": 0.0, "scale": scale}.get(name, 1.0), jnp.float32)

    arrays = [first(path[-1].key, leaf.shape, key) for (path, leaf), key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, arrays)


def is_trained(config: AdapterConfig, model: Model) -> Callable[[str], bool]:
    """Return whether a parameter is trained beside an adapter, by its name: the adapter, heads, and adapter.full."""
    patterns = [pattern for pattern in config.full.split(",") if pattern]
    has_head = isinstance(model, SequenceClassifier | TokenTagger)

    def decide(name: str) -> bool:
        if name.startswith(f"{ADAPTERS}/"):
            return not name.endswith("/scale")
        name = name.removesuffix("/numbers").removesuffix("/scales")  # of an int8 parameter
        if has_head and not name.startswith("encoder/"):
            return True
        return any(re.search(pattern, name) for pattern in patterns)

    return decide


def split_trained(params: Params, config: Config, model: Model) -> tuple[Params, Params]:
    """Split parameters, with the adapter if there is one, into those to train and those that stay as they are.

    Raises:
      UserError: a pattern of optimizer.freeze or adapter.full matches no name, or no parameter is left to train.
    """
    if not config.adapter.kind:
        return split_frozen(params, config.optimizer.freeze)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = [name for name in ("/".join(path_names(path)) for path, _ in leaves) if not name.startswith(ADAPTERS)]
    for pattern in filter(None, config.adapter.full.split(",")):
        if not any(re.search(pattern, name) for name in names):
            raise UserError(f"adapter.full: no parameter has {pattern!r} in its name.")
    return split_params(params, is_trained(config.adapter, model))
