"""Tables that describe a family of Hugging Face models, and the conversion of config.json by such a table.

A table (families/) maps fields of config.json to fields of our configuration, and our parameters to tensors of the
files. Both maps are used in both directions; a test for every family shows that one direction inverts the other.
The conversion of tensors: tensor_layout.py.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import warn
from transformer_jax.huggingface.config_keys import IGNORED, READ_ELSEWHERE, REQUIRED
from transformer_jax.huggingface.files import PretrainedError
from transformer_jax.schema import config_fields

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "relu": "relu",
    "relu2": "squared_relu",
    "silu": "silu",
    "swish": "silu",
}
_GATED = {"gelu": "geglu", "gelu_tanh": "geglu_tanh", "silu": "swiglu"}
GATED_ACTIVATIONS = {name: _GATED[ours] for name, ours in ACTIVATIONS.items() if ours in _GATED}
BIASES = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}  # our fields where every linear layer has a bias


class SameAs(NamedTuple):
    """A default that is the value of another field of config.json, which has a default of its own."""

    hf_name: str
    default: object


class Field(NamedTuple):
    """A field of config.json and the fields of our configuration that it sets.

    A dot separates section and field: "encoder.d_model".
    """

    hf_names: str | tuple[str, ...]  # alternatives: the first one present counts; (): always the default, not written
    names: str | tuple[str, ...]  # all of them are set
    default: Any  # if config.json has none of the fields, or null
    choices: dict[Any, Any] | None = None  # value in config.json -> our value, if they differ
    offset: int = 0  # our value minus the value in config.json


class Section(NamedTuple):
    """Fields of config.json that depend on each other, with functions for both directions."""

    hf_names: tuple[str, ...]
    read: Callable[[dict], dict[str, object]]  # config.json -> our fields
    write: Callable[[dict], dict[str, object]]  # our fields -> fields of config.json; a None removes one
    unread: Callable[[dict], list[str]]  # config.json -> names in the fields that nothing reads


class TensorPart(NamedTuple):
    """Location of a parameter in the files: a tensor, or one of several equal parts of it."""

    name: str
    layout: str = "out_in"  # of a kernel: out_in as in torch.nn.Linear, or in_out; row: a vector stored as [1, V]
    part: int = 0  # index of the part along the last axis
    num_parts: int = 1


TensorNames = Mapping[str, str | TensorPart]
"""Path of a module or parameter, {i} for the layer -> name of a module or tensor in the files."""


class Architecture(NamedTuple):
    """A model with a head on the family's body: a kind of models.MODELS, and the tensor names of the head."""

    kind: str
    tensor_names: TensorNames = {}
    num_labels_field: str = ""  # argument of the model that holds the number of labels
    untied_names: TensorNames = {}  # replace `tensor_names` in models whose output projection is not tied


class Family(NamedTuple):
    """The complete description of one `model_type`."""

    model_type: str
    architectures: dict[str, Architecture]  # by name in config.json; the first if config.json names none
    fields: tuple[Field, ...]
    fixed: dict[str, Any]  # our fields that have the same value in every model of the family
    required: dict[
        str, object
    ]  # fields of config.json with the only value that we compute, or its function of them all
    tensor_names: TensorNames
    aliases: Mapping[str, str] = {}  # other names of fields of config.json, which win, as in the reference library
    sections: tuple[Section, ...] = ()
    ignored_fields: tuple[str, ...] = ()  # of config.json, besides config_keys.IGNORED: they change no output
    token_ids: Mapping[str, int] = {}  # special tokens of a config.json that does not name them
    gated_names: TensorNames = {}  # replace `tensor_names` in models with a gate in the feed-forward part
    output_projection: tuple[str, ...] = ()  # its tensor, then the embeddings that it can be tied to
    renamed: tuple[tuple[str, str], ...] = ()  # (pattern, replacement) from old tensor names to current ones
    ignored: tuple[str, ...] = ()  # patterns of tensors that are no parameters, or copies of one
    same_storage: tuple[tuple[str, ...], ...] = ()  # tensors that are one; files may have any of them
    embedding_tables: tuple[str, ...] = ()  # tensors: the embeddings of encoder and decoder, if they are separate
    optional: tuple[str, ...] = ()  # tensors that are 0 if they are missing
    copies: tuple[tuple[str, str], ...] = ()  # (copy, tensor): written whenever the tensor is

    @property
    def is_seq2seq(self) -> bool:
        """True for models with an encoder and a decoder."""
        return any(architecture.kind == "seq2seq" for architecture in self.architectures.values())


def get(values: object, path: str) -> Any:
    """Return the value at "section.field", or None if there is none."""
    for name in path.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def put(values: dict, path: str, value: object) -> None:
    """Set the value at "section.field"."""
    *sections, name = path.split(".")
    for section in sections:
        if not isinstance(values.get(section), dict):
            values[section] = {}
        values = values[section]
    values[name] = value


def as_tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return one name or several as a tuple."""
    return (names,) if isinstance(names, str) else names


def _read_value(field: Field, hf_config: dict) -> Any:
    """The value of a field of config.json, converted to our value."""
    name, value = _first_present(field, hf_config)
    default = field.default
    if value is None and isinstance(default, SameAs):
        value = get(hf_config, default.hf_name)
        default = default.default
    if value is None:
        return default + field.offset if field.offset else default
    if field.choices is not None:
        if not isinstance(value, str | bool) or value not in field.choices:
            known = ", ".join(map(str, field.choices))
            raise PretrainedError(f"config.json: {name}={value!r:.80} is not supported. Known: {known}.")
        return field.choices[value]
    value = checked(name, value, _field_type(field))
    return value + field.offset if field.offset else value


def _first_present(field: Field, hf_config: dict) -> tuple[str, Any]:
    for name in as_tuple(field.hf_names):
        if (value := get(hf_config, name)) is not None:
            return name, value
    return "", None


def checked(name: str, value: Any, expected: type) -> Any:
    """Check a value of config.json: `value` if its type and range are right, an int as float where one is expected."""
    if expected is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    is_in_range = not isinstance(value, int | float) or -1 < value < 2**31  # False for NaN
    if type(value) is not expected or not is_in_range:
        is_bool = expected is bool
        rule = "must be true or false" if is_bool else f"must be a {expected.__name__} from 0 to below 2^31"
        raise PretrainedError(f"config.json: {name}={value!r:.80} {rule}.")
    return value


def _field_type(field: Field) -> type:
    name = as_tuple(field.names)[0].rsplit(".", 1)[-1]
    if name == "share_embeddings":  # a field of Seq2SeqConfig
        return bool
    expected: Any = config_fields(TransformerConfig)[name].type
    return expected


def known_fields(family: Family) -> dict[str, str]:
    """Every field of config.json that the family knows, with its treatment: read, required or ignored.

    Raises:
      AssertionError: a field has two.
    """
    read = [name for field in family.fields for name in as_tuple(field.hf_names)]
    read += [name for section in family.sections for name in section.hf_names]
    elsewhere = [name for name in READ_ELSEWHERE if name not in family.required]
    groups: dict[str, Mapping[str, object]] = {"read": dict.fromkeys([*read, *family.aliases, *elsewhere])}
    groups["required"] = REQUIRED | dict(family.required)
    groups["ignored"] = dict.fromkeys((*IGNORED, *family.ignored_fields))
    known = {name: treatment for treatment, names in groups.items() for name in names}
    assert len(known) == sum(map(len, groups.values())), f"{family.model_type}: a field of config.json is treated twice"
    return known


def warn_of_unknown_fields(family: Family, hf_config: dict) -> None:
    """Warn, in a line on stderr, of fields of config.json that change nothing here, as in the reference library."""
    unknown = [name for name in hf_config if name not in known_fields(family)]
    unknown += [name for section in family.sections for name in section.unread(hf_config)]
    if unknown:
        warn(f"config.json: {', '.join(sorted(unknown)):.200}: not read, for {family.model_type} has no such fields.")


def _standard_names(family: Family, hf_config: dict) -> dict:
    """config.json without the aliases of the family."""
    aliases = {name: hf_config[alias] for alias, name in family.aliases.items() if hf_config.get(alias) is not None}
    return {name: value for name, value in hf_config.items() if name not in family.aliases} | aliases


def read_config(family: Family, hf_config: dict) -> dict:
    """Convert config.json to our fields, nested if a model has an encoder and a decoder.

    Raises:
      PretrainedError: a value of the wrong type, an unknown choice, a computation that this library does not have.
    """
    hf_config = _standard_names(family, hf_config)
    for name, required in (REQUIRED | dict(family.required)).items():
        value = hf_config.get(name)
        expected = required(hf_config) if callable(required) else required
        is_same = value == expected and isinstance(value, bool) == isinstance(expected, bool)
        if value is not None and not is_same and not (expected is None and not value):  # {}, [], 0 and false are none
            only = "Only its absence" if expected is None else f"Only {expected!r}"
            raise PretrainedError(f"config.json: {name}={value!r:.80} is not supported. {only} is.")
    config: dict = {}
    for name, value in family.fixed.items():
        put(config, name, value)
    for field in family.fields:
        value = _read_value(field, hf_config)
        for name in as_tuple(field.names):
            put(config, name, value)
    for section in family.sections:
        config |= section.read(hf_config)
    return config


def write_config(family: Family, config: dict, hf_config: dict) -> dict:
    """Convert our fields to config.json: a copy of `hf_config`, changed only where `config` differs.

    Raises:
      PretrainedError: the family has no such model.
    """
    is_new = not hf_config
    hf_config = _standard_names(family, _copy(hf_config)) | {"model_type": family.model_type}
    for name, value in family.fixed.items():
        if get(config, name) != value:
            raise PretrainedError(f"model.{name}={get(config, name)!r}: {family.model_type} has {value!r} only.")
    for field in family.fields:
        values = {get(config, name) for name in as_tuple(field.names)}
        if len(values) > 1:
            raise PretrainedError(f"{family.model_type} has one value for {' and '.join(as_tuple(field.names))}.")
        value = values.pop()
        present = [name for name in as_tuple(field.hf_names) if get(hf_config, name) is not None]
        if not field.hf_names or (_read_value(field, hf_config) == value and (present or not is_new)):
            continue
        put(hf_config, [*present, *as_tuple(field.hf_names)][0], _hf_value(family, field, value))
    for section in family.sections:
        if is_new or any(get(config, name) != value for name, value in section.read(hf_config).items()):
            kept = {name: value for name, value in hf_config.items() if name not in section.hf_names}
            hf_config = kept | {name: value for name, value in section.write(config).items() if value is not None}
    return hf_config


def _hf_value(family: Family, field: Field, value: Any) -> Any:
    if field.choices is None:
        return value - field.offset if field.offset else value
    for hf_value, our_value in field.choices.items():
        if our_value == value:
            return hf_value
    raise PretrainedError(f"model.{as_tuple(field.names)[0]}={value!r}: {family.model_type} has no such value.")


def _copy(values: object) -> Any:
    return {name: _copy(value) for name, value in values.items()} if isinstance(values, dict) else values
