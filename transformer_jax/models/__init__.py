"""The models, by what they read and write."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.errors import UserError, choose
from transformer_jax.models.encoder import (
    Encoder,
    MaskedLM,
    Regressor,
    SentenceEmbedder,
    SequenceClassifier,
    TokenTagger,
)
from transformer_jax.models.gpt import GPT
from transformer_jax.models.seq2seq import Seq2Seq, Seq2SeqConfig
from transformer_jax.schema import from_dict

__all__ = [
    "GPT",
    "MODELS",
    "Encoder",
    "MaskedLM",
    "Regressor",
    "SentenceEmbedder",
    "Seq2Seq",
    "Seq2SeqConfig",
    "SequenceClassifier",
    "TokenTagger",
    "describe_model",
    "first_params",
    "make_model",
    "parameter_shapes",
]

MODELS = {
    "gpt": GPT,
    "encoder": Encoder,
    "masked_lm": MaskedLM,
    "classifier": SequenceClassifier,
    "regressor": Regressor,
    "tagger": TokenTagger,
    "embedder": SentenceEmbedder,
    "seq2seq": Seq2Seq,
}
_SETTINGS = {"num_classes": int, "num_tags": int, "pooling": str}  # of some heads


def describe_model(model: nn.Module) -> dict[str, Any]:
    """A model as plain data for JSON: its kind, configuration and settings. `make_model` is the way back."""
    kind = next(kind for kind, cls in MODELS.items() if type(model) is cls)
    settings = {name: getattr(model, name) for name in _SETTINGS if hasattr(model, name)}
    return {"kind": kind, "config": dataclasses.asdict(model.config), **settings}


def make_model(values: dict[str, Any]) -> nn.Module:
    """The model that `describe_model` described. Raises UserError for what it cannot have described."""
    values = dict(values)
    cls = choose(MODELS, values.pop("kind", None), "model.kind")
    config = from_dict(cls.__dataclass_fields__["config"].type, values.pop("config", {}), "model.")
    for name, value in values.items():
        if name not in _SETTINGS or name not in cls.__dataclass_fields__:
            raise UserError(f"model.{name}: a {cls.__name__} has no such setting.")
        if type(value) is not _SETTINGS[name]:
            raise UserError(f"model.{name}={value!r}: must be of type {_SETTINGS[name].__name__}.")
    return cls(config, **values)


def parameter_shapes(model: nn.Module) -> Any:
    """Shapes and types of a model's parameters, nothing of it allocated."""
    return jax.eval_shape(functools.partial(first_params, model), jax.random.key(0))


def first_params(model: nn.Module, key: jax.Array) -> Any:
    """Random parameters, as before any training."""
    tokens = jnp.zeros((1, 1), jnp.int32)  # no parameter's shape depends on the length
    inputs = (tokens, tokens) if isinstance(model, Seq2Seq) else (tokens,)
    return model.init(key, *inputs)["params"]
