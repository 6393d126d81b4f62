"""Models: GPT, encoders with their heads, and Seq2Seq; their registry, description and initial parameters."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError, choose
from transformer_jax.models.encoder import Encoder, MaskedLM, SentenceEmbedder, SequenceClassifier, TokenTagger
from transformer_jax.models.gpt import GPT
from transformer_jax.models.seq2seq import Seq2Seq, Seq2SeqConfig
from transformer_jax.schema import from_dict

__all__ = [
    "GPT",
    "MODELS",
    "Encoder",
    "MaskedLM",
    "Model",
    "PROBLEM_TYPES",
    "Params",
    "SentenceEmbedder",
    "Seq2Seq",
    "Seq2SeqConfig",
    "SequenceClassifier",
    "TokenTagger",
    "check_problem_type",
    "default_problem_type",
    "describe_model",
    "init_params",
    "make_model",
    "merge_params",
    "parameter_shapes",
    "path_names",
    "split_params",
]

MODELS: dict[str, type[Any]] = {
    "gpt": GPT,
    "encoder": Encoder,
    "masked_lm": MaskedLM,
    "classifier": SequenceClassifier,
    "tagger": TokenTagger,
    "embedder": SentenceEmbedder,
    "seq2seq": Seq2Seq,
}
Params = Any  # a tree of parameters: dicts of dicts of arrays, by module and by name
Model = GPT | Encoder | MaskedLM | SequenceClassifier | TokenTagger | SentenceEmbedder | Seq2Seq
PROBLEM_TYPES = {  # of config.json: the meaning of a classification head's outputs
    "single_label_classification": "one label a text: a softmax",
    "multi_label_classification": "any number of labels a text: a sigmoid for each",
    "regression": "numbers",
}
_HEAD_SETTINGS = {"num_classes": int, "num_tags": int, "pooling": str}


def describe_model(model: Model) -> dict[str, Any]:
    """Describe a model as plain data for JSON: its kind, configuration and settings. Inverse of `make_model`."""
    kind = next(kind for kind, cls in MODELS.items() if type(model) is cls)
    settings = {name: getattr(model, name) for name in _HEAD_SETTINGS if hasattr(model, name)}
    return {"kind": kind, "config": dataclasses.asdict(model.config), **settings}


def make_model(values: object) -> Model:
    """Create the model that `describe_model` described.

    Raises:
      UserError: an unknown kind, field or setting, one that is missing, or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise UserError(f"model={values!r:.80}: must be an object with kind and config.")
    cls = choose(MODELS, values["kind"] if "kind" in values else "", "model.kind")
    config = from_dict(
        cls.__dataclass_fields__["config"].type, values["config"] if "config" in values else {}, "model."
    )
    settings = {name: value for name, value in values.items() if name not in ("kind", "config")}
    for name, value in settings.items():
        if name not in _HEAD_SETTINGS or name not in cls.__dataclass_fields__:
            raise UserError(f"model.{name}: a {cls.__name__} has no such setting. Remove it.")
        if type(value) is not _HEAD_SETTINGS[name]:
            raise UserError(f"model.{name}={value!r:.80}: must be of type {_HEAD_SETTINGS[name].__name__}.")
    for name in _HEAD_SETTINGS.keys() & cls.__dataclass_fields__.keys() - settings.keys():
        if cls.__dataclass_fields__[name].default is dataclasses.MISSING:
            raise UserError(f"model.{name}: is missing, and a {cls.__name__} needs it.")
    return cls(config, **settings)


def check_problem_type(model: Model, problem_type: str, name: str = "problem_type") -> None:
    """Check that a model can have this problem type: one of PROBLEM_TYPES for a classification head, "" for any other.

    Raises:
      UserError: an unknown type, none where there is such a head, or a single label for a text of only one label.
    """
    if not isinstance(model, SequenceClassifier):
        if problem_type:
            raise UserError(f"{name}={problem_type!r:.80}: a {type(model).__name__} has none. Remove it.")
        return
    choose(PROBLEM_TYPES, problem_type, name)
    if model.num_classes == 1 and problem_type == "single_label_classification":
        raise UserError(
            f"{name}={problem_type!r}: needs two labels or more, and the model has one. Take 'regression', or "
            "'multi_label_classification' for the probability of that label."
        )


def default_problem_type(model: Model) -> str:
    """Problem type of a model that comes without one: by its number of outputs, as transformers decides in training."""
    if not isinstance(model, SequenceClassifier):
        return ""
    return "regression" if model.num_classes == 1 else "single_label_classification"


def parameter_shapes(model: Model) -> Params:
    """Parameter shapes and types of a model, without allocating the parameters.

    One layer of each kind is traced, and only once: tracing takes tens of ms per layer, most of the time in which a
    small run is loaded.
    """
    shapes: Params = {}
    for path, leaf in _traced_shapes(model.clone(config=_with_one_period(model.config))):
        names = path_names(path)
        side: TransformerConfig = getattr(model.config, names[0], model.config.decoder)
        block = next((name for name in names if name.startswith("block_")), "")
        for i in range(int(block[6:]), side.num_layers, side.layer_period) if block else (0,):
            *modules, last = (f"block_{i}" if name == block else name for name in names)
            functools.reduce(lambda tree, name: tree.setdefault(name, {}), modules, shapes)[last] = leaf
    return shapes


@functools.lru_cache(maxsize=64)
def _traced_shapes(model: Model) -> list[tuple[tuple, jax.ShapeDtypeStruct]]:
    """Paths and shapes of the parameters of a model that is traced as a whole."""
    traced = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
    return jax.tree_util.tree_leaves_with_path(traced)


def _with_one_period(config: TransformerConfig | Seq2SeqConfig) -> TransformerConfig | Seq2SeqConfig:
    """The config with as many layers as there are before their kinds repeat."""
    encoder, decoder = (
        dataclasses.replace(side, num_layers=side.layer_period) for side in (config.encoder, config.decoder)
    )
    if isinstance(config, TransformerConfig):
        return decoder
    return dataclasses.replace(config, encoder=encoder, decoder=decoder)


def path_names(path: tuple[jax.tree_util.DictKey, ...]) -> tuple[str, ...]:
    """Names along the path of a parameter, ("stack", "block_0", "norm", "scale"), from the keys of jax.tree_util."""
    return tuple(key.key for key in path)


def split_params(params: Params, is_chosen: Callable[[str], bool]) -> tuple[Params, Params]:
    """Split a tree of parameters by name: (chosen, others), two trees of the same dicts without empty ones.

    Args:
      is_chosen: tells for a name such as "stack/block_0/attention/query/kernel".
    """
    parts: tuple[Params, Params] = ({}, {})
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        *modules, last = path_names(path)
        tree = parts[0 if is_chosen("/".join([*modules, last])) else 1]
        functools.reduce(lambda tree, name: tree.setdefault(name, {}), modules, tree)[last] = leaf
    return parts


def merge_params(part: Params, other: Params) -> Params:
    """Merge two trees of parameters that have no name in common; the inverse of `split_params`."""
    merged = dict(part)
    for name, child in other.items():
        if name in part:
            assert isinstance(child, dict), f"{name} is in both parts"
            merged[name] = merge_params(part[name], child)
        else:
            merged[name] = child
    return {name: merged[name] for name in sorted(merged)}


def init_params(model: Model, key: jax.Array) -> Params:
    """Initialize a model's parameters at random."""
    tokens = jnp.zeros((1, 1), jnp.int32)  # no parameter's shape depends on the length
    inputs = (tokens, tokens) if model.reads_source else (tokens,)
    return model.init(key, *inputs)["params"]
