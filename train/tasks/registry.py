"""Task registry: ONE row per task says everything about it. It loads no JAX, so that settings are checked at once.

A task is a builder, (config, init_from) -> Task, in a file of this folder, and a row of TASKS.
"""

import dataclasses
import importlib
from collections.abc import Callable

# Settings that only some tasks read. `ignored_settings.CONDITIONS` says which settings need more than the task.
RUNNING_TEXT_SETTINGS = ("data.cache_dir", "data.text_field", "data.val_fraction", "train.steps_per_call")
EXAMPLE_SETTINGS = ("data.test_split", "data.lowercase", "tokenizer.dropout", "train.batch_tokens", "train.num_buckets")
TAG_SETTINGS = ("data.text_field", "data.label_field", "model.num_token_types")
LABEL_SETTINGS = (*TAG_SETTINGS, "data.val_fraction", "train.pooling", "train.token_dropout")
VOCABULARY_SETTINGS = ("model.scale_logits", "model.tie_embeddings", "model.logit_bias", "model.logit_softcap")

TEXT_SOURCES = ("python_docs", "python_source", "text", "markov", "hmm", "grammar", "tfds")
LABELLED_SOURCES = ("labelled", "languages", "tfds")

EVALUATE = "evaluate --run_dir={run_dir} --split=val"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskRow:
    """Row of TASKS. `builder` and `scorer` are "module:function", imported when they are needed.

    A module with a dot in front is in this folder.
    """

    builder: str  # (config, init_from) -> Task: model, loss, batches and metrics of a run
    scorer: str  # (run, config, split, options) -> Score, for `evaluate`
    sources: tuple[str, ...]  # values of data.source
    best_by: tuple[str, ...]  # metrics that choose the best checkpoint; the first that a run measures
    reads: tuple[str, ...]  # of the settings in the `reads` of any row, those that this task reads
    commands: tuple[str, ...]  # that answer for its runs, beside `evaluate`, `attention` and `convert`
    next_command: str  # to try after training

    def load_builder(self) -> Callable:
        """Import the builder; `base.load_task` calls it."""
        return _load(self.builder)

    def load_scorer(self) -> Callable:
        """Import the scorer; `scoring.score` calls it."""
        return _load(self.scorer)


def _load(path: str) -> Callable:
    module, name = path.split(":")
    return getattr(importlib.import_module(module, __package__), name)


TASKS: dict[str, TaskRow] = {
    "causal_lm": TaskRow(
        builder=".language_modeling:causal_lm",
        scorer=".scoring:causal_lm",
        sources=TEXT_SOURCES,
        best_by=("loss",),
        reads=("data.documents", *RUNNING_TEXT_SETTINGS, *VOCABULARY_SETTINGS),
        commands=("sample", "score"),
        next_command='sample --run_dir={run_dir} --prompt="The " --on_overflow=re-prefill',
    ),
    "masked_lm": TaskRow(
        builder=".language_modeling:masked_lm",
        scorer=".scoring:validation_metrics",
        sources=TEXT_SOURCES,
        best_by=("loss",),
        reads=("data.mask_fraction", "model.num_token_types", *RUNNING_TEXT_SETTINGS, *VOCABULARY_SETTINGS),
        commands=(),
        next_command=EVALUATE,
    ),
    "spans": TaskRow(
        builder=".language_modeling:spans",
        scorer=".scoring:validation_metrics",
        sources=TEXT_SOURCES,
        best_by=("loss",),
        reads=("data.mask_fraction", *RUNNING_TEXT_SETTINGS, *VOCABULARY_SETTINGS),
        commands=("sample", "score", "translate"),
        next_command=EVALUATE,
    ),
    "classify": TaskRow(
        builder=".supervised:classify",
        scorer=".scoring:classify",
        sources=LABELLED_SOURCES,
        best_by=("accuracy", "micro_f1"),
        reads=("data.label_separator", *EXAMPLE_SETTINGS, *LABEL_SETTINGS),
        commands=("classify",),
        next_command=EVALUATE,
    ),
    "regress": TaskRow(
        builder=".supervised:regress",
        scorer=".scoring:regress",
        sources=LABELLED_SOURCES,
        best_by=("loss",),
        reads=(*EXAMPLE_SETTINGS, *LABEL_SETTINGS),
        commands=("classify",),
        next_command=EVALUATE,
    ),
    "tag": TaskRow(
        builder=".supervised:tag",
        scorer=".scoring:tag",
        sources=("tagged", "python_tokens", "tfds"),
        best_by=("entity_f1", "accuracy"),
        reads=(*EXAMPLE_SETTINGS, *TAG_SETTINGS),
        commands=("tag",),
        next_command=EVALUATE,
    ),
    "chat": TaskRow(
        builder=".chat:chat",
        scorer=".chat:score",
        sources=("chat",),
        best_by=("loss",),
        reads=(
            *("data.chat_template", "data.max_chat_tokens", "data.val_fraction", "train.steps_per_call"),
            *VOCABULARY_SETTINGS,
        ),
        commands=("chat", "sample", "score"),
        next_command="chat --run_dir={run_dir}",
    ),
    "seq2seq": TaskRow(
        builder=".supervised:seq2seq",
        scorer=".scoring:seq2seq",
        sources=("parallel", "dates", "copy", "reverse", "sort", "tfds"),
        best_by=("loss",),
        reads=(
            *("data.source_language", "data.target_language"),
            *("tokenizer.separate", "train.label_smoothing", *EXAMPLE_SETTINGS, *VOCABULARY_SETTINGS),
        ),
        commands=("translate", "sample", "score"),
        next_command="translate --run_dir={run_dir} <input >output",
    ),
}


def tasks_reading(setting: str) -> tuple[str, ...]:
    """Tasks that read a setting, by its dotted name: all those that list it, or every task if none does."""
    listed = tuple(name for name, row in TASKS.items() if setting in row.reads)
    return listed or tuple(TASKS)
