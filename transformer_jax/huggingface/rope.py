"""Rotary settings of config.json: `rope_theta`, `rope_scaling` (transformers 4) and `rope_parameters` (5)."""

import math
from collections.abc import Callable

from transformer_jax.config import TransformerConfig
from transformer_jax.huggingface.family import Section, checked
from transformer_jax.huggingface.files import PretrainedError
from transformer_jax.nn.rope_scaling import numbers
from transformer_jax.schema import from_dict

_DYNAMIC_REACH = 8  # "dynamic" has no last length: we take this many times the original one, or its factor if larger
_WITH_ORIGINAL = ("llama3", "yarn", "longrope")


class _Rope:
    """The rotary settings of one config.json, checked as they are read; the nested ones win, as in the reference."""

    def __init__(self, hf_config: dict):
        self.section = next(
            (name for name in ("rope_scaling", "rope_parameters") if hf_config.get(name)), "rope_scaling"
        )
        nested = hf_config.get(self.section) or {}
        if not isinstance(nested, dict) or any(isinstance(value, dict) for value in nested.values()):
            raise PretrainedError(f"config.json: {self.section}={nested!r:.80} must be one section of numbers.")
        self.max_len = _int(hf_config, "max_position_embeddings", 2048)
        self.values = {name: value for name, value in nested.items() if value is not None}
        for name in ("rope_theta", "partial_rotary_factor"):
            if hf_config.get(name) is not None:
                self.values.setdefault(name, hf_config[name])
        self.kind = self.values.get("rope_type", self.values.get("type", "default"))
        if self.kind in _WITH_ORIGINAL:
            name = "original_max_position_embeddings"  # here the outer one wins
            self.values[name] = _int(hf_config, name, self.values.get(name, self.max_len))
        self.known = {"rope_type", "type", "partial_rotary_factor"}

    def number(self, name: str, default: float | None = None) -> float:
        """A number of the section; without a default it must be there."""
        return float(self._value(name, default, float))

    def integer(self, name: str) -> int:
        """An integer of the section, which must be there."""
        return int(self._value(name, None, int))

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        return bool(self._value(name, default, bool))

    def _value(self, name: str, default: float | None, kind: type) -> float:
        self.known.add(name)
        value = self.values.get(name, default)
        if value is None:
            raise PretrainedError(f"config.json: {self.section}.{name}: is missing, and {self.kind!r} needs it.")
        number: float = checked(f"{self.section}.{name}", value, kind)
        return number

    def factors(self, name: str) -> str:
        """A list of numbers of the section, with commas between them."""
        self.known.add(name)
        values = self.values.get(name)
        if not isinstance(values, list) or not values:
            raise PretrainedError(f"config.json: {self.section}.{name}={values!r:.80} must be a list of numbers.")
        return ",".join(repr(checked(f"{self.section}.{name}", value, float)) for value in values)


def _int(hf_config: dict, name: str, default: int) -> int:
    value = default if hf_config.get(name) is None else checked(name, hf_config[name], int)
    if type(value) is int and value < 1:
        raise PretrainedError(f"config.json: {name}={value} must be at least 1.")
    return value


def _none(rope: _Rope) -> dict[str, object]:
    return {}


def _linear(rope: _Rope) -> dict[str, object]:
    return {"rope_factor": rope.number("factor")}


def _dynamic(rope: _Rope) -> dict[str, object]:
    factor = rope.number("factor")
    max_len = int(rope.max_len * max(factor, _DYNAMIC_REACH))
    return {"rope_factor": factor, "rope_original_max_len": rope.max_len, "max_len": max_len}


def _llama3(rope: _Rope) -> dict[str, object]:
    return {
        "rope_factor": rope.number("factor"),
        "rope_low_freq_factor": rope.number("low_freq_factor"),
        "rope_high_freq_factor": rope.number("high_freq_factor"),
        "rope_original_max_len": rope.integer("original_max_position_embeddings"),
    }


def _yarn(rope: _Rope) -> dict[str, object]:
    original = rope.integer("original_max_position_embeddings")
    factor = rope.number("factor")
    scale = rope.number("mscale", 0.0)
    scale_all = rope.number("mscale_all_dim", 0.0)
    attention = 0.0  # by the factor, Peng et al. 2023, equation 22
    if factor > 1 and scale and scale_all:  # DeepSeek's files have a weight for its logarithm, and a divisor
        attention = (0.1 * scale * math.log(factor) + 1.0) / (0.1 * scale_all * math.log(factor) + 1.0)
    return {
        "rope_factor": factor,
        "rope_low_freq_factor": rope.number("beta_slow", 1.0) or 1.0,
        "rope_high_freq_factor": rope.number("beta_fast", 32.0) or 32.0,
        "rope_original_max_len": original,
        "rope_attention_factor": _attention_factor(rope, attention),
        "rope_truncate": rope.flag("truncate", True),
        "max_len": max(rope.max_len, int(factor * original)),
    }


def _longrope(rope: _Rope) -> dict[str, object]:
    original = rope.integer("original_max_position_embeddings")
    factor = rope.number("factor", rope.max_len / original)
    return {
        "rope_factor": factor,
        "rope_original_max_len": original,
        "rope_attention_factor": _attention_factor(rope, 0.0),
        "rope_short_factors": rope.factors("short_factor"),
        "rope_long_factors": rope.factors("long_factor"),
    }


def _attention_factor(rope: _Rope, default: float) -> float:
    factor: float = rope.number("attention_factor", default)
    if "attention_factor" in rope.values and not factor > 0:
        raise PretrainedError(f"config.json: {rope.section}.attention_factor={factor} must be above 0.")
    return factor


_READERS: dict[str, Callable[[_Rope], dict[str, object]]] = {  # by rope_type
    "default": _none,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


def read_rope(hf_config: dict) -> dict[str, object]:
    """Convert the rotary settings of config.json to our fields, as the reference library understands them.

    Raises:
      PretrainedError: an unknown scaling; a number that its scaling needs is missing or of the wrong type.
    """
    return _read(hf_config)[1]


def _unread(hf_config: dict) -> list[str]:
    rope, _ = _read(hf_config)
    return [f"{rope.section}.{name}" for name in rope.values.keys() - rope.known]


def _read(hf_config: dict) -> tuple[_Rope, dict[str, object]]:
    rope = _Rope(hf_config)
    if not isinstance(rope.kind, str) or rope.kind not in _READERS:
        known = ", ".join(_READERS)
        raise PretrainedError(
            f"config.json: {rope.section}.rope_type={rope.kind!r:.80} is not supported. Known: {known}."
        )
    if rope.number("partial_rotary_factor", 1.0) != 1:
        value = rope.values["partial_rotary_factor"]
        raise PretrainedError(f"config.json: partial_rotary_factor={value!r:.80} is not supported. Only 1.0 is.")
    config: dict[str, object] = {"rope_theta": rope.number("rope_theta", 10000.0)}
    config["rope_scaling"] = "none" if rope.kind == "default" else rope.kind
    return rope, config | _READERS[rope.kind](rope)


def write_rope(config: dict) -> dict[str, object]:
    """Fields of config.json for our rotary settings, in the form that transformers 4 and 5 read."""
    model = from_dict(TransformerConfig, config)
    names: dict[str, object] = {"factor": model.rope_factor}
    if model.rope_scaling in _WITH_ORIGINAL:
        names["original_max_position_embeddings"] = model.rope_original_max_len
    if model.rope_scaling == "llama3":
        names |= {"low_freq_factor": model.rope_low_freq_factor, "high_freq_factor": model.rope_high_freq_factor}
    if model.rope_scaling == "yarn":
        names |= {"beta_slow": model.rope_low_freq_factor, "beta_fast": model.rope_high_freq_factor}
        names |= {"truncate": model.rope_truncate}
    if model.rope_scaling == "longrope":
        names |= {"short_factor": numbers(model.rope_short_factors), "long_factor": numbers(model.rope_long_factors)}
    if model.rope_scaling in ("yarn", "longrope") and model.rope_attention_factor:
        names["attention_factor"] = model.rope_attention_factor
    is_scaled = model.rope_scaling != "none"
    written: dict[str, object] = {
        "rope_theta": model.rope_theta,
        "rope_scaling": {"rope_type": model.rope_scaling} | names if is_scaled else None,
    }
    if model.rope_scaling == "dynamic":
        written["max_position_embeddings"] = model.rope_original_max_len
    return written


ROPE = Section(
    ("rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings", "partial_rotary_factor"),
    read_rope,
    write_rope,
    _unread,
)
