"""What a run is about: where its examples come from, which model sees them, and what it is asked for.

A task is one function (config, start, meta) -> Task, and one entry in TASKS.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator

import flax.linen as nn
import jax
import numpy as np

from train import objectives
from train.config import Config
from train.data.corrupt import hide_spans, hide_tokens, num_hidden
from train.data.labelled import load_labelled
from train.data.order import ExampleOrder, TrainOrder
from train.data.pairs import load_pairs
from train.data.pipeline import (
    Batch,
    eval_batches,
    labelled_batch,
    load_corpus,
    pair_batch,
    prefetch,
    tagged_batch,
    window_batch,
)
from train.data.tagged import encode_sentence, load_tagged
from train.floor import floor_of, paired, with_floor
from train.resume import with_vocabulary
from train.start import Start
from transformer_jax.config import choose
from transformer_jax.models import GPT, MaskedLM, Seq2Seq, SequenceClassifier, TokenTagger
from transformer_jax.tokenizers import Tokenizer

MEAN_SPAN = 3.0  # tokens in a gap, in the mean, as in T5
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
    tokens_per_step: int  # about
    has_one_shape: bool  # of all batches: then several steps may share a call
    bytes_per_token: float | None = None  # turns a loss per token into bits per byte
    labels: tuple[str, ...] = ()
    origin: dict = dataclasses.field(default_factory=dict)  # of a pre-trained model that it starts from

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
    objective = objectives.causal_lm
    validation = functools.partial(eval_batches, corpus.val_tokens, shape.max_len, _eval_rows(shape.max_len))
    if floor := floor_of(config.data.source, corpus.tokenizer):
        objective, validation = paired(objective), with_floor(validation, floor)

    return Task(
        GPT(shape), corpus.tokenizer, objective,
        functools.partial(window_batch, corpus.train_tokens, order),
        validation,
        corpus.fingerprint,
        corpus.description,
        lambda batch: int(batch["is_token"][..., 1:].sum()), config.train.batch_size * shape.max_len,
        has_one_shape=True,
        bytes_per_token=corpus.val_bytes_per_token,
    )  # fmt: skip


def masked_lm(config: Config, start: Start, meta: dict | None) -> Task:
    """A MaskedLM on running text; the gaps of a window are drawn anew in every epoch."""
    corpus = load_corpus(config.data, config.tokenizer, start.tokenizer)
    tokenizer = corpus.tokenizer
    shape = with_vocabulary(start.merged(config.model), max(tokenizer.vocab_size, tokenizer.mask_id + 1))
    start.check_kind(MaskedLM)
    order = TrainOrder(len(corpus.train_tokens), shape.max_len, config.train.batch_size, config.train.seed)

    def with_gaps(batch: Batch, *seed: int) -> Batch:
        tokens, is_token = batch["tokens"][:, :-1], batch["is_token"][:, :-1]
        random, fraction = np.random.default_rng(seed), config.data.mask_fraction
        gaps, is_chosen = hide_tokens(tokens, random, fraction, tokenizer.mask_id, tokenizer.vocab_size)
        return {"tokens": gaps, "is_token": is_token, "target": tokens, "is_target": is_chosen & is_token}

    def validation() -> Iterator[Batch]:
        for i, batch in enumerate(eval_batches(corpus.val_tokens, shape.max_len, _eval_rows(shape.max_len))):
            yield with_gaps(batch, i)

    return Task(
        MaskedLM(shape), tokenizer, objectives.masked_lm,
        lambda step: with_gaps(window_batch(corpus.train_tokens, order, step), config.train.seed, step), validation,
        corpus.fingerprint,
        corpus.description,
        lambda batch: int(batch["is_token"].sum()), config.train.batch_size * shape.max_len, has_one_shape=True,
    )  # fmt: skip


def spans(config: Config, start: Start, meta: dict | None) -> Task:
    """A Seq2Seq that writes what is missing in running text, as T5 is trained; gaps are drawn anew in every epoch."""
    corpus = load_corpus(config.data, config.tokenizer, start.tokenizer)
    tokenizer, max_len = corpus.tokenizer, config.model.max_len - 1
    first_sentinel, (_, num_spans) = tokenizer.mask_id, num_hidden(max_len, config.data.mask_fraction, MEAN_SPAN)
    shape = start.merged_sides(config.model, first_sentinel + num_spans)
    order = TrainOrder(len(corpus.train_tokens), max_len, config.train.batch_size, config.train.seed)

    def with_gaps(tokens: np.ndarray, *seed: int) -> Batch:
        source, target = hide_spans(
            tokens, np.random.default_rng(seed), config.data.mask_fraction, MEAN_SPAN, first_sentinel,
            (start.start_id(), tokenizer.eos_id),
        )  # fmt: skip
        whole = {"source": source, "target": target}
        return whole | {f"{side}_is_token": np.ones(tokens.shape, bool) for side, tokens in whole.items()}

    def train_batch(step: int) -> Batch:
        return with_gaps(window_batch(corpus.train_tokens, order, step)["tokens"][:, :-1], config.train.seed, step)

    def validation() -> Iterator[Batch]:
        windows = corpus.val_tokens[: len(corpus.val_tokens) // max_len * max_len].reshape(-1, max_len)
        rows = min(_eval_rows(max_len), len(windows) // jax.device_count() * jax.device_count())
        for i in range(0, len(windows) - rows + 1, max(rows, 1)):
            yield with_gaps(windows[i : i + rows], i)

    return Task(
        Seq2Seq(shape), tokenizer, objectives.seq2seq,
        train_batch, validation, corpus.fingerprint,
        f"{corpus.description}, {num_spans} gaps in {max_len} tokens",
        lambda batch: int(batch["target_is_token"][..., 1:].sum()), config.train.batch_size * max_len,
        has_one_shape=True,
    )  # fmt: skip


def classify(config: Config, start: Start, meta: dict | None) -> Task:
    """A SequenceClassifier on labelled texts."""
    labels, head_labels = tuple(meta["labels"]) if meta else (), start.run.labels if start.run else ()
    data = load_labelled(config.data, config.tokenizer, start.tokenizer, labels, head_labels)
    shape = with_vocabulary(start.merged(config.model), data.tokenizer.vocab_size)
    start.check_kind(SequenceClassifier)
    texts, labels, num_cut = [], [], 0
    for part in (data.train, data.validation):
        encoded = [data.tokenizer.encode_whole(text) for text, _ in part]
        num_cut += sum(len(tokens) > shape.max_len for tokens in encoded)
        texts.append([tokens[: shape.max_len] for tokens in encoded])
        labels.append(np.array([label for _, label in part], np.int32))
    order, *batches = _by_length(
        config, shape.max_len, [[len(tokens) for tokens in part] for part in texts],
        lambda part, *batch: labelled_batch(texts[part], labels[part], *batch, data.tokenizer.pad_id),
    )  # fmt: skip
    cut = f"; {num_cut:,} longer than {shape.max_len} tokens were cut" if num_cut else ""
    return Task(
        SequenceClassifier(shape, len(data.labels)), data.tokenizer, objectives.classify,
        *batches,
        data.fingerprint,
        f"{len(texts[0]):,} texts to train on, {len(texts[1]):,} to validate on, {len(data.labels)} labels{cut}, "
        f"{order.padding:.0%} padding",
        lambda batch: int(batch["is_token"].sum()), order.mean_tokens, has_one_shape=False, labels=data.labels,
    )  # fmt: skip


def tag(config: Config, start: Start, meta: dict | None) -> Task:
    """A TokenTagger on sentences with a tag for each word."""
    data = load_tagged(config.data, config.tokenizer, start.tokenizer, tuple(meta["labels"]) if meta else ())
    shape = with_vocabulary(start.merged(config.model), data.tokenizer.vocab_size)
    start.check_kind(TokenTagger)
    index, num_cut, parts = {label: i for i, label in enumerate(data.labels)}, 0, []
    for part in (data.train, data.validation):
        encoded = [encode_sentence(data.tokenizer, sentence, index) for sentence in part]
        num_cut += sum(len(sentence[0]) > shape.max_len for sentence in encoded)
        parts.append([tuple(array[: shape.max_len] for array in sentence) for sentence in encoded])
    order, *batches = _by_length(
        config, shape.max_len, [[len(sentence[0]) for sentence in part] for part in parts],
        lambda part, *batch: tagged_batch(parts[part], *batch, data.tokenizer.pad_id),
    )  # fmt: skip
    cut = f"; {num_cut:,} longer than {shape.max_len} tokens were cut" if num_cut else ""
    return Task(
        TokenTagger(shape, len(data.labels)), data.tokenizer, objectives.tag,
        *batches,
        data.fingerprint,
        f"{len(parts[0]):,} sentences to train on, {len(parts[1]):,} to validate on, {len(data.labels)} tags{cut}, "
        f"{order.padding:.0%} padding",
        lambda batch: int(batch["is_token"].sum()), order.mean_tokens, has_one_shape=False, labels=data.labels,
    )  # fmt: skip


def seq2seq(config: Config, start: Start, meta: dict | None) -> Task:
    """A Seq2Seq on pairs of texts; both sides have the shape of `model` and one vocabulary."""
    data = load_pairs(config.data, config.tokenizer, start.tokenizer)
    shape = start.merged_sides(config.model, data.tokenizer.vocab_size)
    max_len = min(shape.encoder.max_len, shape.decoder.max_len)
    sides, num_dropped = [], 0
    for part in (data.train, data.validation):
        pairs = [encode_pair(data.tokenizer, start.start_id(), *pair) for pair in part]
        kept = [pair for pair in pairs if len(pair[0]) <= max_len and len(pair[1]) <= max_len + 1]
        num_dropped += len(pairs) - len(kept)
        sides.append(([source for source, _ in kept], [target for _, target in kept]))
    lengths = [[max(len(s), len(t) - 1) for s, t in zip(*part, strict=True)] for part in sides]
    order, *batches = _by_length(
        config, max_len, lengths, lambda part, *batch: pair_batch(*sides[part], *batch, data.tokenizer.pad_id)
    )
    dropped = f"; {num_dropped:,} longer than {max_len} tokens were left out" if num_dropped else ""
    return Task(
        Seq2Seq(shape), data.tokenizer,
        functools.partial(objectives.seq2seq, label_smoothing=config.train.label_smoothing),
        *batches,
        data.fingerprint,
        f"{len(lengths[0]):,} pairs to train on, {len(lengths[1]):,} to validate on{dropped}, {order.padding:.0%} "
        f"padding, {order.steps_per_epoch:,} steps an epoch",
        lambda batch: int(batch["target_is_token"][..., 1:].sum()), order.mean_tokens, has_one_shape=False,
    )  # fmt: skip


def encode_pair(tokenizer: Tokenizer, start_id: int, source: str, target: str) -> tuple[np.ndarray, np.ndarray]:
    """A source with its end, and a target with the token that starts one and its end."""
    return tokenizer.encode_source(source), np.insert(tokenizer.encode_target(target), 0, start_id)


def _by_length(
    config: Config, max_len: int, lengths: list[list[int]], make: Callable[..., Batch]
) -> tuple[ExampleOrder, Callable[[int], Batch], Callable[[], Iterator[Batch]]]:
    """The order of training, and the batches of training and of validation.

    Args:
      lengths: of the examples of both parts, in tokens.
      make: (0 for training or 1, examples, length, number of rows) -> batch.
    """
    order = functools.partial(
        ExampleOrder, max_len=max_len, num_devices=jax.device_count(), num_buckets=config.train.num_buckets
    )
    rows = {"batch_size": config.train.batch_size, "batch_tokens": config.train.batch_tokens}
    train = order(tuple(lengths[0]), seed=config.train.seed, **rows)
    validation = order(tuple(lengths[1]), seed=0, batch_size=1, batch_tokens=EVAL_TOKENS)

    def batch(part: int, order: ExampleOrder, step: int) -> Batch:
        examples, length = order.batch(step)
        return make(part, examples, length, order.rows(length))

    def validate() -> Iterator[Batch]:
        return (batch(1, validation, step) for step in range(validation.steps_per_epoch))

    return train, functools.partial(batch, 0, train), validate


TASKS = {
    "causal_lm": causal_lm, "masked_lm": masked_lm, "spans": spans, "classify": classify, "tag": tag,
    "seq2seq": seq2seq,
}  # fmt: skip


def load_task(config: Config, start: Start, meta: dict | None) -> Task:
    """The task that `train.task` names; `meta` is that of the checkpoint to go on from."""
    task = choose(TASKS, config.train.task, "train.task")(config, start, meta)
    return dataclasses.replace(task, origin=start.origin)
