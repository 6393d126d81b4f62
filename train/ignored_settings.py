"""Refuse settings that a run would ignore: conditions under which each setting is read.

A field of `train.config.Config` is read by the tasks whose row lists it (`tasks/registry.py`; by all if no row does),
where one of its CONDITIONS holds, if it has any. Elsewhere it may not differ from its default.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from transformer_jax.errors import UserError

from .tasks.registry import TASKS, TEXT_SOURCES, tasks_reading


@dataclasses.dataclass(frozen=True)
class Values:
    """A condition on the value of a field, with the words that complete "is read only with FIELD"."""

    words: str
    holds: Callable[[Any], bool]


def one_of(*values: Any) -> Values:
    """The condition that a field has one of these values."""
    return Values("=" + " | ".join(str(value) or "''" for value in values), lambda value: value in values)


def _is_conllu(path: str) -> bool:
    return path.removesuffix(".gz").endswith(".conllu")


SET = Values(" set", bool)
CONLLU = Values("=*.conllu", lambda path: not path or _is_conllu(path))  # a recipe may not know its file yet

Alternative = dict[str, Values]  # all conditions hold, by the name of the field

TFDS = {"data.source": one_of("tfds")}
DATES_OR_TFDS = {"data.source": one_of("dates", "tfds")}
PARALLEL = {"data.source": one_of("parallel")}
EXAMPLE_FILES = {"data.source": one_of("parallel", "labelled", "tagged", "chat")}
TRAINED_TOKENIZER = {"tokenizer.path": one_of("")}
SUBWORDS = TRAINED_TOKENIZER | {"tokenizer.kind": one_of("bpe", "wordpiece", "unigram")}
MUON = {"optimizer.name": one_of("muon")}
ROTARY = {"model.positions": one_of("rotary")}
ATTENTION_POSITIONS = {"model.positions": one_of("rotary", "t5", "alibi", "shaw")}
SCALED_ROTARY = ROTARY | {"model.rope_scaling": one_of("linear", "dynamic", "llama3", "yarn", "longrope")}
YARN = ROTARY | {"model.rope_scaling": one_of("yarn")}
LONGROPE = ROTARY | {"model.rope_scaling": one_of("longrope")}
IN_PARTS = ROTARY | {"model.rope_scaling": one_of("llama3", "yarn")}  # scalings that keep short wavelengths
INIT_FROM = {"train.init_from": SET}
LAYER_ADAPTER = {"adapter.kind": one_of("lora", "dora", "ia3")}
PREFIX = {"adapter.kind": one_of("prefix", "prompt")}
ADAPTER = {"adapter.kind": one_of("lora", "dora", "ia3", "prefix", "prompt")}
LORA = {"adapter.kind": one_of("lora", "dora")}

CONDITIONS: dict[str, tuple[Alternative, ...]] = {
    "data.path": ({"data.source": one_of("text", "parallel", "labelled", "tagged", "chat", "tfds")},),
    "data.target_path": (PARALLEL,),
    "data.val_path": (EXAMPLE_FILES,),
    "data.val_target_path": (PARALLEL,),
    "data.test_path": (EXAMPLE_FILES,),
    "data.test_target_path": (PARALLEL,),
    "data.source_language": (DATES_OR_TFDS,),
    "data.target_language": (DATES_OR_TFDS,),
    "data.text_field": ({"data.source": one_of("labelled", "tfds")},),
    "data.label_field": (
        {"data.source": one_of("labelled", "tfds")},
        {"data.source": one_of("tagged"), "data.path": CONLLU},
    ),
    "data.label_separator": ({"data.source": one_of("labelled")},),
    "data.cache_dir": ({"data.documents": one_of("")},),
    "data.tfds_dir": (TFDS,),
    "data.train_split": (TFDS,),
    "data.val_split": (TFDS,),
    "data.test_split": (TFDS,),
    "data.val_fraction": (
        {"data.source": one_of(*(source for source in TEXT_SOURCES if source != "tfds"))},
        {"data.source": one_of("labelled", "chat"), "data.val_path": one_of("")},
    ),
    "tokenizer.kind": (TRAINED_TOKENIZER,),
    "tokenizer.vocab_size": (SUBWORDS,),
    "optimizer.muon_lr": (MUON,),
    "optimizer.muon_steps": (MUON,),
    "optimizer.final_lr_fraction": ({"optimizer.schedule": one_of("warmup_cosine", "warmup_linear")},),
    "optimizer.freeze": ({"adapter.kind": one_of("")},),  # with an adapter all others are
    "adapter.kind": (INIT_FROM,),
    "adapter.rank": (LORA,),
    "adapter.alpha": (LORA,),
    "adapter.rslora": (LORA,),
    "adapter.dropout": (LORA,),
    "adapter.num_tokens": (PREFIX,),
    "adapter.where": (LAYER_ADAPTER,),
    "adapter.full": (ADAPTER,),
    "adapter.int8": (ADAPTER,),
    "train.resize_vocab": (INIT_FROM,),
    "train.resize_positions": (INIT_FROM,),
    "train.batch_size": ({"train.batch_tokens": one_of(0)},),
    "model.position_offset": ({"model.positions": one_of("learned")},),
    "model.sinusoid_layout": ({"model.positions": one_of("sinusoidal")},),
    "model.rope_theta": (ROTARY,),
    "model.rotary_dim": (ROTARY,),
    "model.rope_layout": (ROTARY,),
    "model.rope_scaling": (ROTARY,),
    "model.rope_factor": (SCALED_ROTARY,),
    "model.rope_low_freq_factor": (IN_PARTS,),
    "model.rope_high_freq_factor": (IN_PARTS,),
    "model.rope_original_max_len": (ROTARY | {"model.rope_scaling": one_of("dynamic", "llama3", "yarn", "longrope")},),
    "model.rope_attention_factor": (ROTARY | {"model.rope_scaling": one_of("yarn", "longrope")},),
    "model.rope_truncate": (YARN,),
    "model.rope_short_factors": (LONGROPE,),
    "model.rope_long_factors": (LONGROPE,),
    "model.relative_buckets": ({"model.positions": one_of("t5")},),
    "model.relative_max_distance": ({"model.positions": one_of("t5", "shaw")},),
    "model.local_rope_theta": (ROTARY,),
    "model.local_positions": (ATTENTION_POSITIONS,),
    "model.global_positions": (ATTENTION_POSITIONS,),
    "model.attention_scale": ({"model.attention": one_of("softmax")},),
}


def read_by() -> dict[str, tuple[Alternative, ...]]:
    """Readers of each setting that not every run reads: the tasks that list it, under one of its conditions."""
    readers = dict(CONDITIONS)
    for name in dict.fromkeys(name for row in TASKS.values() for name in row.reads):
        of_task = {"train.task": one_of(*tasks_reading(name))}
        readers[name] = tuple(of_task | other for other in (CONDITIONS[name] if name in CONDITIONS else ({},)))
    return readers


def check_settings_are_read(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse a setting that differs from its default although nothing in this run reads it.

    With `train.init_from` fields of the model are not checked here: `InitFrom.merge_config` compares them with its own.

    Args:
      settings, defaults: values by dotted name, "train.task".
    Raises:
      UserError: names the setting, what reads it, and its default.
    """
    task = settings["train.task"]
    if task not in TASKS or settings["data.source"] not in TASKS[task].sources:
        return  # refused, with the list of known names, when the data is loaded
    for name, alternatives in read_by().items():
        value = settings[name]
        if value == defaults[name] or (name.startswith("model.") and settings["train.init_from"]):
            continue
        if not any(_holds(settings, alternative) for alternative in alternatives):
            readers = " or with ".join(
                " and ".join(f"{field}{values.words}" for field, values in alternative.items())
                for alternative in alternatives
            )
            named = dict.fromkeys(field for alternative in alternatives for field in alternative)
            here = ", ".join(f"{field}={settings[field]!r}" for field in named)
            raise UserError(f"{name}={value!r}: is read only with {readers}, not with {here}. Take {defaults[name]!r}.")


def _holds(settings: Mapping[str, Any], alternative: Alternative) -> bool:
    return all(values.holds(settings[name]) for name, values in alternative.items())
