"""Schema of a configuration: dataclass fields with a meaning, strict parsing from dicts, nearest-name suggestions."""

import dataclasses
import difflib
from typing import Any, TypeVar

from transformer_jax.errors import UserError

T = TypeVar("T")
MAX_FLOAT = 2.0**128 - 2.0**104  # the largest number of float32


def setting(default: object, meaning: str) -> Any:
    """Dataclass field with a meaning, so that `--help` and the reader see the same words."""
    return dataclasses.field(default=default, metadata={"meaning": meaning})


def from_dict(cls: type[T], values: object, path: str = "") -> T:
    """Build the (nested) dataclass `cls` from a mapping; check every name, type and number.

    Args:
      cls: a dataclass whose fields are bool, int, float, str or dataclasses of the same kind.
      values: anything with `items()`: a dict read from JSON or an ml_collections ConfigDict.
      path: prefix of field names in messages: "model." for the section `model`.

    Raises:
      UserError: an unknown field (with the nearest known one), a missing field that has no default, a value of
        another type, NaN or infinity.
    """
    if not hasattr(values, "items"):
        raise UserError(f"{path.rstrip('.') or 'config'}={values!r:.80}: must be a section with fields of its own.")
    assert dataclasses.is_dataclass(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    kwargs: dict[str, object] = {}
    for name, value in values.items():
        if name not in fields:
            raise unknown_field(path + name, [path + known for known in fields])
        expected: Any = fields[name].type
        if isinstance(expected, type) and dataclasses.is_dataclass(expected):
            kwargs[name] = from_dict(expected, value, f"{path}{name}.")
            continue
        kwargs[name] = typed(path + name, expected, value)
    for name, field in fields.items():
        if name not in kwargs and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{path}{name}: is missing.")
    return cls(**kwargs)


def typed(name: str, expected: type[T], value: object) -> T:
    """Check the type of a field's value and return it; an integer becomes a float where one is expected.

    Raises:
      UserError: a value of another type, NaN or infinity.
    """
    if expected is float and type(value) is int and abs(value) < 2**1023:
        value = float(value)
    if type(value) is int and not -(2**63) <= value < 2**63:
        shown = str(value) if value.bit_length() < 200 else f"a number of {value.bit_length():,} bits"
        raise UserError(f"{name}={shown}: must be a signed number of 64 bits.")
    if type(value) is not expected:
        kind = "a list" if expected is tuple else f"of type {expected.__name__}"
        raise UserError(f"{name}={value!r:.80}: must be {kind}, not {type(value).__name__}.")
    if isinstance(value, float) and not abs(value) <= MAX_FLOAT:
        raise UserError(f"{name}={value}: must be a finite number of at most 3.4e38.")
    assert isinstance(value, expected), "the type was compared above"
    return value


def check_32_bits(values: object, path: str) -> None:
    """Check that every integer of a dataclass, but for the field `seed`, is a signed number of 32 bits.

    Arrays, and the compiled programs that get these numbers, have no larger ones. Raises UserError.
    """
    for name, value in vars(values).items():
        if type(value) is int and name != "seed" and not -(2**31) <= value < 2**31:
            raise UserError(f"{path}{name}={value}: must be below 2**31.")


def unknown_field(name: str, known: list[str]) -> UserError:
    """Return the UserError for a field that does not exist, naming the nearest one that does."""
    section, _, leaf = name.rpartition(".")
    leaves = {field: field.rpartition(".")[2] for field in known}
    here = [field for field in known if field.rpartition(".")[0] == section]
    with_words = [field for field in known if set(leaf.split("_")) <= set(leaves[field].split("_"))]  # lr: peak_lr
    namesakes = [field for field in with_words if leaves[field] == leaf]  # right field, wrong section
    close = difflib.get_close_matches(leaf, [leaves[field] for field in here], 1, 0.6)
    near = [field for field in with_words if field in here]
    near += [field for field in here if leaves[field] in close] + namesakes + with_words
    near += [] if here else difflib.get_close_matches(name, known, 1, 0.6)
    fix = f"Did you mean {near[0]}?" if near else f"Known here: {', '.join(here or known)}."
    return UserError(f"{name}: no such field. {fix}")


def config_fields(cls: type, path: str = "") -> dict[str, dataclasses.Field]:
    """List every leaf field of a (nested) configuration dataclass by its dotted name, in order."""
    leaves: dict[str, dataclasses.Field] = {}
    for field in dataclasses.fields(cls):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            leaves |= config_fields(field.type, f"{path}{field.name}.")
        else:
            leaves[path + field.name] = field
    return leaves
