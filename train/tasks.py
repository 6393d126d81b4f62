"""What a run is about: where its examples come from, which model sees them, and what it is asked for.

A task is one function (config, start, meta) -> Task, and one entry in TASKS.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator

import flax.linen as nn
import jax

from train import objectives
from train.config import Config
from train.data.labelled import load_labelled
from train.data.order import ExampleOrder, TrainOrder
from train.data.pipeline import Batch, eval_batches, fill, load_corpus, prefetch, window_batch
from train.resume import with_vocabulary
from train.start import Start
from transformer_jax.config import UserError
from transformer_jax.models import GPT, SequenceClassifier
from transformer_jax.tokenizers import Tokenizer

EVAL_TOKENS = 8192  # targets in one evaluation batch, about: enough to be fast, few enough for their logits


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Everything of a run that is not the same for all runs."""

    model: nn.Module
    tokenizer: Tokenizer
    objective: Callable  # see objectives.py
    train_batch: Callable[[int], Batch]  # a pure function of the step
    eval_batches: Callable[[], Iterable[Batch]]
    fingerprint: dict[str, str | int]  # equal when the examples are
    description: str
    num_targets: Callable[[Batch], int]
    has_one_shape: bool  # of all batches: then several steps may share a call
    bytes_per_token: float | None = None  # turns a loss per token into bits per byte
    labels: tuple[str, ...] = ()

    def batches(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        """The batches of steps first_step to num_steps - 1, in order, made ahead of time in a thread of their own."""
        return prefetch(self.train_batch, first_step, num_steps)


def _eval_rows(max_len: int) -> int:
    rows = max(1, EVAL_TOKENS // max_len)
    return -(-rows // jax.device_count()) * jax.device_count()  # the devices share them


def causal_lm(config: Config, start: Start, meta: dict | None) -> Task:
    """A GPT on running text."""
    corpus = load_corpus(config.data, config.tokenizer, start.tokenizer)
    shape = with_vocabulary(start.merged(config.model), corpus.tokenizer.vocab_size)
    start.check_kind(GPT)
    order = TrainOrder(len(corpus.train_tokens), shape.max_len, config.train.batch_size, config.train.seed)

    return Task(
        GPT(shape), corpus.tokenizer, objectives.causal_lm,
        functools.partial(window_batch, corpus.train_tokens, order),
        lambda: eval_batches(corpus.val_tokens, shape.max_len, _eval_rows(shape.max_len)),
        corpus.fingerprint,
        f"{len(corpus.train_tokens):,} tokens to train on, {len(corpus.val_tokens):,} to validate on",
        lambda batch: int(batch["is_token"][..., 1:].sum()), has_one_shape=True,
        bytes_per_token=corpus.val_bytes_per_token,
    )  # fmt: skip


def classify(config: Config, start: Start, meta: dict | None) -> Task:
    """A SequenceClassifier on labelled texts."""
    data = load_labelled(config.data, config.tokenizer, start.tokenizer, tuple(meta["labels"]) if meta else ())
    shape = with_vocabulary(start.merged(config.model), data.tokenizer.vocab_size)
    start.check_kind(SequenceClassifier)
    train, validation = (
        [data.tokenizer.encode_whole(text)[: shape.max_len] for text, _ in part]
        for part in (data.train, data.validation)
    )
    train_labels, val_labels = ([label for _, label in part] for part in (data.train, data.validation))
    num_cut = sum(len(data.tokenizer.encode_whole(text)) > shape.max_len for text, _ in data.train + data.validation)
    order = ExampleOrder(tuple(map(len, train)), shape.max_len, config.train.batch_size, config.train.seed)

    def train_batch(step: int) -> Batch:
        rows, length = order.batch(step)
        return fill(train, train_labels, rows, length, config.train.batch_size, data.tokenizer.pad_id)

    def val_batches() -> Iterator[Batch]:
        rows = _eval_rows(shape.max_len)
        plan = ExampleOrder(tuple(map(len, validation)), shape.max_len, rows, 0)
        for step in range(plan.steps_per_epoch):
            yield fill(validation, val_labels, *plan.batch(step), rows, data.tokenizer.pad_id)

    cut = f"; {num_cut:,} longer than {shape.max_len} tokens were cut" if num_cut else ""
    return Task(
        SequenceClassifier(shape, len(data.labels)), data.tokenizer, objectives.classify, train_batch, val_batches,
        data.fingerprint,
        f"{len(train):,} texts to train on, {len(validation):,} to validate on, {len(data.labels)} labels{cut}",
        lambda batch: int(batch["is_token"].sum()), has_one_shape=False, labels=data.labels,
    )  # fmt: skip


TASKS = {"causal_lm": causal_lm, "classify": classify}


def load_task(config: Config, start: Start, meta: dict | None) -> Task:
    """The task that `train.task` names; `meta` is that of the checkpoint to go on from."""
    if config.train.task not in TASKS:
        raise UserError(f"train.task={config.train.task!r}: unknown. Choose one of: {', '.join(TASKS)}.")
    return TASKS[config.train.task](config, start, meta)
