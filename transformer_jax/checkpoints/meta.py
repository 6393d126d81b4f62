"""CheckpointMeta: typed metadata of a checkpoint, written as JSON, and every field checked when it is read."""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Callable
from typing import TypeVar

from transformer_jax.errors import UserError, choose
from transformer_jax.models import Model, check_problem_type, describe_model, make_model
from transformer_jax.models.adapters import KINDS, AdapterSpec
from transformer_jax.schema import typed, unknown_field
from transformer_jax.tokenizers import Tokenizer, tokenizer_from_dict

FORMAT = 5  # of the JSON: 1 to 4 had other fields

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_DTYPES = ("float32", "bfloat16", "float16", "int8")  # of parameters
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class HuggingFaceConfig:
    """Configuration files of a Hugging Face folder, as they are; `save_pretrained` writes them again."""

    config: dict[str, object]  # config.json
    generation: dict[str, object]  # generation_config.json; {}: the folder had none


@dataclasses.dataclass(frozen=True)
class BestScore:
    """Best evaluation of a training run so far."""

    metric: str  # of train.best_by
    score: float | None = None  # larger is better: the metric, or its negative; None: no evaluation yet
    step: int = 0


@dataclasses.dataclass(frozen=True)
class TrainingMeta:
    """Metadata that only a training run has."""

    config: dict[str, object]  # settings of the run, for `train.config.Config.from_dict`
    best: BestScore
    fingerprint: dict[str, str | int]  # of the data: equal for equal examples


@dataclasses.dataclass(frozen=True)
class CheckpointMeta:
    """Metadata of a checkpoint: with the parameters, all that loading a run or continuing its training needs."""

    step: int
    model: Model
    tokenizer: Tokenizer | None
    labels: tuple[str, ...] = ()  # of a classifier or tagger, in the order of its logits
    lowercase: bool = False  # True: trained on lower-cased texts
    separator: str = " "  # between the words that a tagger reads
    problem_type: str = ""  # of a classification head: one of models.PROBLEM_TYPES; "": there is none
    hf_config: HuggingFaceConfig | None = None  # None: not from a Hugging Face folder
    adapter: AdapterSpec | None = None  # beside the parameters; None: there is none
    frozen: str = ""  # seal of the run's frozen parameters, which are not in this checkpoint; "": it has all
    param_dtypes: dict[str, str] = dataclasses.field(default_factory=dict)  # by tree path; those that are not float32
    val_score: float | None = None  # larger is better; None: this step was not evaluated
    training: TrainingMeta | None = None  # None: written by `tj.save`
    versions: dict[str, str] = dataclasses.field(default_factory=lambda: installed_versions())  # Python and packages

    def to_dict(self) -> dict[str, object]:
        """Convert to plain data for JSON; the inverse of `from_dict`."""
        return {
            "format": FORMAT,
            "step": self.step,
            "model": describe_model(self.model),
            "tokenizer": self.tokenizer.to_dict() if self.tokenizer else None,
            "labels": list(self.labels),
            "lowercase": self.lowercase,
            "separator": self.separator,
            "problem_type": self.problem_type,
            "hf_config": dataclasses.asdict(self.hf_config) if self.hf_config else None,
            "adapter": dataclasses.asdict(self.adapter) if self.adapter else None,
            "frozen": self.frozen,
            "param_dtypes": self.param_dtypes,
            "val_score": self.val_score,
            "training": dataclasses.asdict(self.training) if self.training else None,
            "versions": self.versions,
        }

    @classmethod
    def from_dict(cls, values: object) -> "CheckpointMeta":
        """Parse the JSON data of a checkpoint.

        Raises:
          UserError: another format, or a field that is missing, unknown or of another type.
        """
        _check_format(values)
        read = _Reader(cls, values, ("format",))
        model = read.value("model", lambda _, value: make_model(value))
        labels = read.value("labels", _strings)
        num_labels = getattr(model, "num_classes", getattr(model, "num_tags", 0))
        if labels and num_labels not in (0, len(labels)):
            raise UserError(f"labels: must be as many as the model has, {num_labels}, and not {len(labels)}.")
        problem_type = read.value("problem_type", _string)
        check_problem_type(model, problem_type)
        return cls(
            step=read.whole_number("step"),
            model=model,
            tokenizer=read.optional("tokenizer", lambda _, value: tokenizer_from_dict(value)),
            labels=tuple(labels),
            lowercase=read.value("lowercase", lambda name, value: typed(name, bool, value)),
            separator=read.value("separator", _string),
            problem_type=problem_type,
            hf_config=read.optional("hf_config", _hf_config),
            adapter=read.optional("adapter", _adapter),
            frozen=read.value("frozen", _string),
            param_dtypes=read.mapping("param_dtypes", _dtype),
            val_score=read.optional("val_score", _number),
            training=read.optional("training", _training),
            versions=read.mapping("versions", _string),
        )


def installed_versions() -> dict[str, str]:
    """Versions of Python and of those packages on which a result may depend, as far as they are installed."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # optax: inference does not need it
            continue
    return versions


def _check_format(values: object) -> None:
    found = values.get("format", 1) if isinstance(values, dict) else None
    if found == FORMAT:
        return
    writer = "an earlier" if found in range(FORMAT) else "another"
    raise UserError(
        f"was written by {writer} version of transformer_jax (checkpoint format {found!r:.80}, this version reads "
        f"{FORMAT}). Train again, or use that version."
    )


class _Reader:
    """Fields of a JSON object that has those of a dataclass, all of them and no others."""

    def __init__(self, cls: type, values: object, others: tuple[str, ...] = (), path: str = ""):
        if not isinstance(values, dict):
            raise UserError(f"{path or 'metadata'}={values!r:.80}: must be an object with fields.")
        self._path = f"{path}." if path else ""
        names = [field.name for field in dataclasses.fields(cls)]
        for name in names:
            if name not in values:
                raise UserError(f"{self._path}{name}: is missing.")
        for name in values:
            if name not in names and name not in others:
                raise unknown_field(self._path + name, [self._path + known for known in names])
        self._values = values

    def value(self, name: str, parse: Callable[[str, object], T]) -> T:
        """One value, parsed."""
        return parse(self._path + name, self._values[name])

    def optional(self, name: str, parse: Callable[[str, object], T]) -> T | None:
        """One value, parsed unless it is null."""
        return None if self._values[name] is None else self.value(name, parse)

    def mapping(self, name: str, parse: Callable[[str, object], T]) -> dict[str, T]:
        """An object of any names, each value parsed."""
        values = self.value(name, _plain_dict)
        return {key: parse(f"{self._path}{name}.{key:.80}", value) for key, value in values.items()}

    def whole_number(self, name: str) -> int:
        """An integer that is not negative."""
        number = typed(self._path + name, int, self._values[name])
        if number < 0:
            raise UserError(f"{self._path}{name}={number}: must not be negative.")
        return number


def _string(name: str, value: object) -> str:
    return typed(name, str, value)


def _strings(name: str, value: object) -> list[str]:
    return [_string(name, item) for item in typed(name, list, value)]


def _number(name: str, value: object) -> float:
    """A number; NaN and infinity are scores too."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UserError(f"{name}={value!r:.80}: must be a number.")
    return float(value)


def _plain_dict(name: str, value: object) -> dict[str, object]:
    return typed(name, dict, value)


def _dtype(name: str, value: object) -> str:
    return choose(dict.fromkeys(_DTYPES, _string(name, value)), value, name)


def _string_or_int(name: str, value: object) -> str | int:
    return value if type(value) is int else _string(name, value)


def _hf_config(name: str, value: object) -> HuggingFaceConfig:
    read = _Reader(HuggingFaceConfig, value, path=name)
    return HuggingFaceConfig(read.value("config", _plain_dict), read.value("generation", _plain_dict))


def _adapter(name: str, value: object) -> AdapterSpec:
    read = _Reader(AdapterSpec, {"num_tokens": 0} | _plain_dict(name, value), path=name)
    kind = read.value("kind", _string)
    choose(KINDS, kind, f"{name}.kind")
    layers = tuple(read.value("layers", _strings))
    return AdapterSpec(kind, read.whole_number("rank"), layers, read.whole_number("num_tokens"))


def _training(name: str, value: object) -> TrainingMeta:
    read = _Reader(TrainingMeta, value, path=name)
    return TrainingMeta(
        config=read.value("config", _plain_dict),
        best=read.value("best", _best),
        fingerprint=read.mapping("fingerprint", _string_or_int),
    )


def _best(name: str, value: object) -> BestScore:
    read = _Reader(BestScore, value, path=name)
    return BestScore(read.value("metric", _string), read.optional("score", _number), read.whole_number("step"))
