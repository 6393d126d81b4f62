"""Refuse settings that a run would ignore: one table of what reads each setting.

A field of `train.config.Config` that is not in the table is read by every run. A field that is in the table may differ
from its default only where one of its alternatives holds.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from transformer_jax.errors import UserError


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

RUNNING_TEXT_TASKS = ("causal_lm", "masked_lm", "spans")
EXAMPLE_TASKS = ("classify", "regress", "tag", "seq2seq")
LABELLED_TASKS = ("classify", "regress")
OUTPUT_TASKS = (*RUNNING_TEXT_TASKS, "seq2seq")  # the model ends in logits of the vocabulary
ENCODER_TASKS = ("masked_lm", "classify", "regress", "tag")

TEXT_SOURCES = ("python_docs", "python_source", "text", "markov", "hmm", "grammar", "tfds")
LABELLED_SOURCES = ("labelled", "languages", "tfds")
SOURCES = {
    **dict.fromkeys(RUNNING_TEXT_TASKS, TEXT_SOURCES),
    **dict.fromkeys(LABELLED_TASKS, LABELLED_SOURCES),
    "tag": ("tagged", "python_tokens", "tfds"),
    "seq2seq": ("parallel", "dates", "copy", "reverse", "sort", "tfds"),
}

Alternative = Mapping[str, Values]  # all conditions hold, by the name of the field

TFDS = {"data.source": one_of("tfds")}
PARALLEL = {"data.source": one_of("parallel")}
EXAMPLE_FILES = {"data.source": one_of("parallel", "labelled", "tagged")}
TRAINED_TOKENIZER = {"tokenizer.path": one_of("")}
SUBWORDS = TRAINED_TOKENIZER | {"tokenizer.kind": one_of("bpe", "wordpiece", "unigram")}
MUON = {"optimizer.name": one_of("muon")}
RUNNING_TEXT = {"train.task": one_of(*RUNNING_TEXT_TASKS)}
EXAMPLES = {"train.task": one_of(*EXAMPLE_TASKS)}
LABELLED = {"train.task": one_of(*LABELLED_TASKS)}
SEQ2SEQ = {"train.task": one_of("seq2seq")}
OUTPUT = {"train.task": one_of(*OUTPUT_TASKS)}
ROTARY = {"model.positions": one_of("rotary")}
LLAMA3 = ROTARY | {"model.rope_scaling": one_of("llama3")}
INIT_FROM = {"train.init_from": SET}

READ_BY: dict[str, tuple[Alternative, ...]] = {
    "data.path": ({"data.source": one_of("text", "parallel", "labelled", "tagged", "tfds")},),
    "data.documents": ({"train.task": one_of("causal_lm")},),
    "data.target_path": (PARALLEL,),
    "data.val_path": (EXAMPLE_FILES,),
    "data.val_target_path": (PARALLEL,),
    "data.test_path": (EXAMPLE_FILES,),
    "data.test_target_path": (PARALLEL,),
    "data.mask_fraction": ({"train.task": one_of("masked_lm", "spans")},),
    "data.lowercase": (SEQ2SEQ,),
    "data.source_language": ({"data.source": one_of("dates")}, TFDS | SEQ2SEQ),
    "data.target_language": ({"data.source": one_of("dates")}, TFDS | SEQ2SEQ),
    "data.text_field": (
        {"data.source": one_of("labelled")},
        TFDS | {"train.task": one_of(*RUNNING_TEXT_TASKS, *LABELLED_TASKS, "tag")},
    ),
    "data.label_field": (
        {"data.source": one_of("labelled")},
        {"data.source": one_of("tagged"), "data.path": CONLLU},
        TFDS | {"train.task": one_of(*LABELLED_TASKS, "tag")},
    ),
    "data.tfds_dir": (TFDS,),
    "data.train_split": (TFDS,),
    "data.val_split": (TFDS,),
    "data.test_split": (TFDS | EXAMPLES,),
    "data.val_fraction": (
        RUNNING_TEXT | {"data.source": one_of(*TEXT_SOURCES[:-1])},
        {"data.source": one_of("labelled"), "data.val_path": one_of("")},
    ),
    "tokenizer.kind": (TRAINED_TOKENIZER,),
    "tokenizer.vocab_size": (SUBWORDS,),
    "tokenizer.separate": (SEQ2SEQ,),
    "tokenizer.dropout": (EXAMPLES,),
    "optimizer.muon_lr": (MUON,),
    "optimizer.muon_steps": (MUON,),
    "optimizer.final_lr_fraction": ({"optimizer.schedule": one_of("warmup_cosine", "warmup_linear")},),
    "train.resize_vocab": (INIT_FROM,),
    "train.resize_positions": (INIT_FROM,),
    "train.batch_size": ({"train.batch_tokens": one_of(0)},),
    "train.batch_tokens": (EXAMPLES,),
    "train.num_buckets": (EXAMPLES,),
    "train.label_smoothing": (SEQ2SEQ,),
    "train.pooling": (LABELLED,),
    "train.token_dropout": (LABELLED,),
    "train.steps_per_call": (RUNNING_TEXT,),
    "model.position_offset": ({"model.positions": one_of("learned")},),
    "model.sinusoid_layout": ({"model.positions": one_of("sinusoidal")},),
    "model.rope_theta": (ROTARY,),
    "model.rope_layout": (ROTARY,),
    "model.rope_scaling": (ROTARY,),
    "model.rope_factor": (ROTARY | {"model.rope_scaling": one_of("linear", "llama3")},),
    "model.rope_low_freq_factor": (LLAMA3,),
    "model.rope_high_freq_factor": (LLAMA3,),
    "model.rope_original_max_len": (LLAMA3,),
    "model.relative_buckets": ({"model.positions": one_of("t5")},),
    "model.relative_max_distance": ({"model.positions": one_of("t5", "shaw")},),
    "model.attention_scale": ({"model.attention": one_of("softmax")},),
    "model.scale_logits": (OUTPUT,),
    "model.num_token_types": ({"train.task": one_of(*ENCODER_TASKS)},),
    "model.tie_embeddings": (OUTPUT,),
    "model.logit_bias": (OUTPUT,),
    "model.logit_softcap": (OUTPUT,),
}


def check_settings_are_read(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse a setting that differs from its default although nothing in this run reads it.

    With `train.init_from` fields of the model are not checked here: `InitFrom.merge_config` compares them with its own.

    Args:
      settings, defaults: values by dotted name, "train.task".
    Raises:
      UserError: names the setting, what reads it, and its default.
    """
    if settings["data.source"] not in SOURCES.get(settings["train.task"], ()):
        return  # refused, with the list of known names, when the data is loaded
    for name, alternatives in READ_BY.items():
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
