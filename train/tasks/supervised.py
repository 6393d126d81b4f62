"""Tasks on examples: a label or a number for a text, a tag for each word, a target for a source."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import numpy as np

from transformer_jax.models import Regressor, Seq2Seq, SequenceClassifier, TokenTagger
from transformer_jax.tokenizers import Tokenizer

from .. import losses
from ..config import Config, TrainConfig
from ..data.batches import Batch, labelled_batch, pair_batch, tagged_batch
from ..data.labelled import Labelled, load_labelled
from ..data.pairs import load_pairs
from ..data.tagged import encode_sentence, load_tagged
from ..initialization import InitFrom
from ..resume import with_vocabulary
from .base import Task, by_length

VERSIONS = 16  # of each training example, where chance leaves out merges; or fewer,
MOST_EXAMPLES = 500_000  # so that there are not many more than these: then each example has a part of the versions


def _to_encode(config: Config, tokenizer: Tokenizer, train: list, validation: list) -> tuple[list, list]:
    """Of both parts each example beside what encodes it, those of training once for each version."""
    rate, plain = config.tokenizer.dropout, [(tokenizer, example) for example in validation]
    if not rate:
        return [(tokenizer, example) for example in train], plain
    encoders = [tokenizer.dropping(rate, config.train.seed, version) for version in range(VERSIONS)]
    times = max(1, min(VERSIONS, MOST_EXAMPLES // len(train)))
    return [(encoders[(i + n) % VERSIONS], example) for n in range(times) for i, example in enumerate(train)], plain


def _versions(encoded: list, train: list) -> str:
    return f" ({len(encoded) // len(train)} versions of each)" if len(encoded) > len(train) else ""


def classify(config: Config, init_from: InitFrom, meta: dict | None) -> Task:
    """A SequenceClassifier on labelled texts."""
    labels, head_labels = tuple(meta["labels"]) if meta else (), init_from.run.labels if init_from.run else ()
    data = load_labelled(config.data, config.tokenizer, init_from.tokenizer, labels, head_labels)
    shape = with_vocabulary(init_from.merged(config.model), data.tokenizer.vocab_size)
    init_from.check_kind(SequenceClassifier)
    model = SequenceClassifier(shape, len(data.labels), config.train.pooling)
    task = _of_texts(config, model, data, losses.classify, np.int32)
    return dataclasses.replace(
        task, description=f"{task.description}, {len(data.labels)} labels", labels=data.labels, best_by="accuracy"
    )


def regress(config: Config, init_from: InitFrom, meta: dict | None) -> Task:
    """A Regressor on texts with a number each."""
    data = load_labelled(config.data, config.tokenizer, init_from.tokenizer, are_numbers=True)
    shape = with_vocabulary(init_from.merged(config.model), data.tokenizer.vocab_size)
    init_from.check_kind(Regressor)
    return _of_texts(config, Regressor(shape, config.train.pooling), data, losses.regress, np.float32)


def _of_texts(config: Config, model: nn.Module, data: Labelled, loss_fn: Callable, label_type: type) -> Task:
    """A task on texts with a label each."""
    parts, max_len = _to_encode(config, data.tokenizer, data.train, data.validation), model.config.max_len
    texts = [[encoder.encode_whole(text) for encoder, (text, _) in part] for part in parts]
    labels = [np.array([label for _, (_, label) in part], label_type) for part in parts]
    num_cut = sum(len(tokens) > max_len for part in texts for tokens in part)
    texts = [[tokens[:max_len] for tokens in part] for part in texts]
    order, *batches = by_length(
        config,
        max_len,
        [[len(tokens) for tokens in part] for part in texts],
        lambda part, *batch: labelled_batch(texts[part], labels[part], *batch, data.tokenizer.pad_id),
    )
    train_batch, validation = batches
    return Task(
        model,
        data.tokenizer,
        loss_fn,
        functools.partial(_leave_out, train_batch, config.train),
        validation,
        data.fingerprint,
        f"{len(texts[0]):,} texts to train on{_versions(parts[0], data.train)}, {len(texts[1]):,} to validate on"
        f"{_cut(num_cut, max_len)}, {order.padding:.0%} padding",
        lambda batch: int(batch["is_token"].sum()),
        order.mean_tokens,
        has_one_shape=False,
        has_perplexity=False,
    )


def _leave_out(make: Callable[[int], Batch], config: TrainConfig, step: int) -> Batch:
    """The batch of a step without a random share of its tokens, but for the first of each text. Iyyer et al. 2015."""
    batch = make(step)
    if config.token_dropout:
        is_kept = np.random.default_rng((config.seed, step)).random(batch["tokens"].shape) >= config.token_dropout
        is_kept[:, 0] = True
        batch["is_token"] &= is_kept
    return batch


def _cut(number: int, max_len: int, what: str = "cut") -> str:
    return f"; {number:,} longer than {max_len} tokens were {what}" if number else ""


def tag(config: Config, init_from: InitFrom, meta: dict | None) -> Task:
    """A TokenTagger on sentences with a tag for each word."""
    data = load_tagged(config.data, config.tokenizer, init_from.tokenizer, tuple(meta["labels"]) if meta else ())
    shape = with_vocabulary(init_from.merged(config.model), data.tokenizer.vocab_size)
    init_from.check_kind(TokenTagger)
    index = {label: i for i, label in enumerate(data.labels)}
    parts = [
        [encode_sentence(encoder, sentence, index) for encoder, sentence in part]
        for part in _to_encode(config, data.tokenizer, data.train, data.validation)
    ]
    num_cut = sum(len(sentence[0]) > shape.max_len for part in parts for sentence in part)
    parts = [[tuple(array[: shape.max_len] for array in sentence) for sentence in part] for part in parts]
    order, *batches = by_length(
        config,
        shape.max_len,
        [[len(sentence[0]) for sentence in part] for part in parts],
        lambda part, *batch: tagged_batch(parts[part], *batch, data.tokenizer.pad_id),
    )
    has_entities = any(label.startswith("B-") for label in data.labels)
    return Task(
        TokenTagger(shape, len(data.labels)),
        data.tokenizer,
        functools.partial(losses.tag, labels=data.labels),
        *batches,
        data.fingerprint,
        f"{len(parts[0]):,} sentences to train on{_versions(parts[0], data.train)}, {len(parts[1]):,} to validate on, "
        f"{len(data.labels)} tags{_cut(num_cut, shape.max_len)}, {order.padding:.0%} padding",
        lambda batch: int(batch["is_token"].sum()),
        order.mean_tokens,
        has_one_shape=False,
        has_perplexity=False,
        best_by="entity_f1" if has_entities else "accuracy",
        labels=data.labels,
        separator=data.train[0].separator,
    )


def seq2seq(config: Config, init_from: InitFrom, meta: dict | None) -> Task:
    """A Seq2Seq on pairs of texts; both sides have the shape of `model` and one vocabulary."""
    data = load_pairs(config.data, config.tokenizer, init_from.tokenizer)
    source_size = data.tokenizer.source.vocab_size if config.tokenizer.separate else 0
    shape = init_from.merged_sides(config.model, data.tokenizer.vocab_size, source_size)
    max_len = min(shape.encoder.max_len, shape.decoder.max_len)
    sides, num_dropped = [], 0
    parts = _to_encode(config, data.tokenizer, data.train, data.validation)
    for part in parts:
        pairs = [encode_pair(encoder, init_from.start_id(), *pair) for encoder, pair in part]
        kept = [pair for pair in pairs if len(pair[0]) <= max_len and len(pair[1]) <= max_len + 1]
        num_dropped += len(pairs) - len(kept)
        sides.append(([source for source, _ in kept], [target for _, target in kept]))
    lengths = [[max(len(s), len(t) - 1) for s, t in zip(*part, strict=True)] for part in sides]
    order, *batches = by_length(
        config, max_len, lengths, lambda part, *batch: pair_batch(*sides[part], *batch, data.tokenizer.pad_id)
    )
    return Task(
        Seq2Seq(shape),
        data.tokenizer,
        functools.partial(losses.seq2seq, label_smoothing=config.train.label_smoothing),
        *batches,
        data.fingerprint,
        f"{len(lengths[0]):,} pairs to train on{_versions(parts[0], data.train)}, {len(lengths[1]):,} to validate on"
        f"{_cut(num_dropped, max_len, 'left out')}, {order.padding:.0%} "
        f"padding, {order.steps_per_epoch:,} steps an epoch",
        lambda batch: int(batch["target_is_token"][..., 1:].sum()),
        order.mean_tokens,
        has_one_shape=False,
    )


def encode_pair(tokenizer: Tokenizer, start_id: int, source: str, target: str) -> tuple[np.ndarray, np.ndarray]:
    """A source with its end, and a target with the token that starts one and its end."""
    return tokenizer.encode_source(source), np.insert(tokenizer.encode_target(target), 0, start_id)
