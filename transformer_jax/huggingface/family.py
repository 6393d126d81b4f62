"""A family of Hugging Face models as a table, and what is done with any such table.

A family says which field of its config.json is which of ours, and which of its tensors is which of our parameters.
Both tables are read in both directions; that the one is the other's inverse is tested for every family.
"""

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from transformer_jax.config import TransformerConfig
from transformer_jax.huggingface.files import PretrainedError, Tensors, listed
from transformer_jax.nn.layers import num_input_axes
from transformer_jax.schema import config_fields

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
TYPES = ("F32", "F16", "BF16")  # of tensors, as the files say it
SUFFIXES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}


class SameAs(NamedTuple):
    """A default: the value of another field of config.json, and the default of this one."""

    field: str
    default: Any


class Field(NamedTuple):
    """Fields of config.json, the first of which that is there counts, and the fields of ours that they decide.

    A dot stands for a section: "rope_scaling.factor", "encoder.d_model".
    """

    theirs: str | tuple[str, ...]
    ours: str | tuple[str, ...]
    default: Any  # where config.json has none of them, or null
    values: dict[Any, Any] | None = None  # theirs -> ours, where they have other names for it
    plus: int = 0  # ours is as much more than theirs
    when: tuple[str, tuple[str, ...]] | None = None  # (field of ours, values): written only where it has one of them


class Place(NamedTuple):
    """Where a parameter lies in the files, if not plainly in a tensor of its name."""

    name: str
    layout: str = "out_in"  # of kernels, as torch.nn.Linear has them; in_out; row: a vector as [1, V]
    part: int = 0  # which of `num_parts` equal parts of the last axis
    num_parts: int = 1


class Architecture(NamedTuple):
    """A model on top of the family's body: one of models.MODELS, with the names of its head."""

    kind: str
    names: dict[str, str | Place] = {}
    labels: str = ""  # the argument of the model that says how many labels there are
    pooling: str = ""


class Family(NamedTuple):
    """All there is to say about one `model_type`."""

    model_type: str
    architectures: dict[str, Architecture]  # by the name in config.json; the first where it has none
    fields: tuple[Field, ...]
    fixed: dict[str, Any]  # fields of ours that are the same in every model of the family
    required: dict[str, Any]  # fields of theirs that would be another computation with any other value
    # Module (or leaf) of ours, {i} for the layer -> module (or tensor) of theirs. "up beside gate" is for models with
    # a gate, "beside unembed" for those whose output projection is not tied.
    names: dict[str, str | Place]
    head: tuple[str, str] | None = None  # tensors: output projection, and the embedding that it is tied to
    renamed: tuple[tuple[str, str], ...] = ()  # (pattern, replacement): old names
    ignored: tuple[str, ...] = ()  # patterns of tensors that are no parameters, or repeat one
    tables: tuple[str, ...] = ()  # tensors: the embeddings of both sides, where they are not one
    optional: tuple[str, ...] = ()  # tensors that are 0 where they are missing
    copies: tuple[tuple[str, str], ...] = ()  # (tensor, another): written as a copy of the other where that is written


def get(values: dict, path: str) -> Any:
    """The value at "section.field"; None where there is none."""
    for name in path.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def put(values: dict, path: str, value: Any) -> None:
    """Set the value at "section.field"."""
    *sections, name = path.split(".")
    for section in sections:
        if not isinstance(values.get(section), dict):
            values[section] = {}
        values = values[section]
    values[name] = value


def _several(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _value(field: Field, theirs: dict) -> Any:
    """What config.json says, in our words."""
    name, value = next(((n, v) for n in _several(field.theirs) if (v := get(theirs, n)) is not None), ("", None))
    default = field.default
    if value is None and isinstance(default, SameAs):
        value, default = get(theirs, default.field), default.default
    if value is None:
        return default + field.plus if field.plus else default
    if field.values is not None:
        if not isinstance(value, str | bool) or value not in field.values:
            known = ", ".join(map(str, field.values))
            raise PretrainedError(f"config.json: {name}={value!r:.80} is not known here. Known: {known}.")
        return field.values[value]
    expected = _types()[_several(field.ours)[0].rsplit(".", 1)[-1]]
    if expected is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    is_in_range = not isinstance(value, int | float) or -1 < value < 2**31  # NaN is not
    if type(value) is not expected or not is_in_range:
        rule = (
            f"must be a {expected.__name__} from 0 to below 2^31" if expected is not bool else "must be true or false"
        )
        raise PretrainedError(f"config.json: {name}={value!r:.80} {rule}.")
    return value + field.plus if field.plus else value


def _types() -> dict[str, type]:
    return {name: field.type for name, field in config_fields(TransformerConfig).items()} | {"share_embeddings": bool}


def read_config(family: Family, theirs: dict) -> dict:
    """config.json in our fields, nested where a model has two sides.

    Raises:
      PretrainedError: a value of the wrong type, an unknown choice, a computation that this library does not have.
    """
    for name, value in family.required.items():
        if get(theirs, name) not in (None, value):
            raise PretrainedError(f"config.json: {name}={get(theirs, name)!r:.80}: here only {value!r} is computed.")
    ours: dict = {}
    for name, value in family.fixed.items():
        put(ours, name, value)
    for field in family.fields:
        value = _value(field, theirs)
        for name in _several(field.ours):
            if field.ours == "use_bias" and get(ours, name) not in (None, value):
                raise PretrainedError(
                    f"config.json: {field.theirs}={value}: here all linear layers have biases or none."
                )
            put(ours, name, value)
    return ours


def write_config(family: Family, ours: dict, theirs: dict) -> dict:
    """config.json that says what `ours` says: `theirs`, changed only where it says something else.

    Raises:
      PretrainedError: the family has no such model.
    """
    is_new = not theirs
    theirs = _copy(theirs) | {"model_type": family.model_type}
    for name, value in family.fixed.items():
        if get(ours, name) != value:
            raise PretrainedError(f"model.{name}={get(ours, name)!r}: {family.model_type} has {value!r} only.")
    for field in family.fields:
        values = {get(ours, name) for name in _several(field.ours)}
        if len(values) > 1:
            raise PretrainedError(f"{family.model_type} has one value for {' and '.join(_several(field.ours))}.")
        value = values.pop()
        is_there = any(get(theirs, name) is not None for name in _several(field.theirs))
        if _value(field, theirs) == value and (is_there or not is_new):
            continue
        if field.when and get(ours, field.when[0]) not in field.when[1]:
            continue
        if field.values is not None:
            names = [name for name, meaning in field.values.items() if meaning == value]
            if not names:
                raise PretrainedError(f"model.{_several(field.ours)[0]}={value!r}: {family.model_type} has no such.")
            value = names[0]
        elif field.plus:
            value -= field.plus
        names = _several(field.theirs)
        put(theirs, next((name for name in names if get(theirs, name) is not None), names[0]), value)
    return theirs


def _copy(values: Any) -> Any:
    return {name: _copy(value) for name, value in values.items()} if isinstance(values, dict) else values


class Tensor(NamedTuple):
    """A tensor of theirs: its shape, and the parameters of ours that it holds, a path each, in order."""

    shape: tuple[int, ...]
    layout: str
    paths: tuple[tuple[str, ...], ...]


def layout(names: dict[str, str | Place], shapes: dict[tuple[str, ...], tuple[int, ...]]) -> dict[str, Tensor]:
    """Every tensor of theirs that a model with parameters of these shapes needs, by name."""
    parts: dict[str, dict[int, tuple]] = {}
    tensors: dict[str, Tensor] = {}
    modules = {path[-2] for path in shapes if len(path) > 1}
    for path, shape in shapes.items():
        index = next((name[6:] for name in path if name.startswith("block_")), "")
        pattern = "/".join("block_{i}" if name.startswith("block_") else name for name in path)
        module, leaf = pattern.rpartition("/")[::2]
        beside = [
            f"{key} beside {other}" for key in (pattern, module) for other in ("gate", "unembed") if other in modules
        ]
        key = next(key for key in (*beside, pattern, module) if key in names)
        place = names[key]
        place = Place(place) if isinstance(place, str) else place
        name = place.name.replace("{i}", index) + ("" if key.startswith(pattern) else f".{SUFFIXES[leaf]}")
        kind = (
            place.layout if leaf == "kernel" or place.layout == "row" else "vector" if leaf != "embedding" else "table"
        )
        parts.setdefault(name, {})[place.part] = path
        tensors[name] = Tensor(_their_shape(path, shape, kind, place.num_parts), kind, ())
    return {
        name: tensor._replace(paths=tuple(path for _, path in sorted(parts[name].items())))
        for name, tensor in tensors.items()
    }


def _their_shape(path, shape, kind, num_parts):
    if kind == "table":
        return shape
    if kind in ("vector", "row"):
        size = math.prod(shape) * num_parts
        return (1, size) if kind == "row" else (size,)
    num_in = num_input_axes(path, len(shape))
    fan_in, fan_out = math.prod(shape[:num_in]), math.prod(shape[num_in:]) * num_parts
    return (fan_out, fan_in) if kind == "out_in" else (fan_in, fan_out)


def to_ours(tensor: Tensor, array: np.ndarray, shapes: dict) -> Iterable[tuple[tuple[str, ...], np.ndarray]]:
    """A tensor of theirs as the parameters of ours that it holds."""
    array = array.T if tensor.layout == "out_in" else array
    for path, part in zip(tensor.paths, np.split(array, len(tensor.paths), axis=-1), strict=True):
        yield path, part.reshape(shapes[path])


def to_theirs(tensor: Tensor, params: dict[tuple[str, ...], Any]) -> np.ndarray:
    """The parameters of ours that a tensor of theirs holds, as this tensor."""
    num_parts = len(tensor.paths)
    if tensor.layout in ("out_in", "in_out"):
        fan_in = tensor.shape[1] if tensor.layout == "out_in" else tensor.shape[0]
        joined = np.concatenate([np.asarray(params[path]).reshape(fan_in, -1) for path in tensor.paths], axis=-1)
        return np.ascontiguousarray(joined.T if tensor.layout == "out_in" else joined)
    joined = np.asarray(params[tensor.paths[0]])
    if num_parts > 1:
        joined = np.concatenate([np.asarray(params[path]).reshape(-1) for path in tensor.paths])
    return np.ascontiguousarray(joined.reshape(tensor.shape))


def their_names(family: Family, tensors: Tensors) -> dict[str, str]:
    """Every tensor by the name that it has today -> by the name that it has in the files."""
    names = {}
    for old in tensors.entries:
        new = old
        for pattern, replacement in family.renamed:
            new = re.sub(pattern, replacement, new)
        names[old if new in tensors.entries else new] = old
    return names


def check_tensors(family: Family, needed: dict[str, Tensor], names: dict[str, str], tensors: Tensors) -> None:
    """Raises PretrainedError: one that names every tensor that is missing, unknown, or of another shape or type."""
    problems = [f"{name} is missing" for name in needed if name not in names and name not in family.optional]
    for new, old in names.items():
        if new not in needed:
            if not any(re.search(pattern, new) for pattern in family.ignored):
                problems.append(f"{old} is unknown")
            continue
        entry, shape = tensors.entries[old], needed[new].shape
        if entry.shape != shape:
            problems.append(f"{old} has shape {list(entry.shape)} and not {list(shape)}")
        if entry.dtype not in TYPES:
            problems.append(f"{old} is of type {entry.dtype} and not F32, F16 or BF16")
    if problems:
        raise PretrainedError(
            f"the tensors do not fit config.json, model_type {family.model_type!r}: {listed(problems)}."
        )
