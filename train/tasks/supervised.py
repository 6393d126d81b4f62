"""Tasks on examples: classification, regression, tagging, and sequence to sequence."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from transformer_jax.config import TransformerConfig
from transformer_jax.models import Seq2Seq, SequenceClassifier, TokenTagger
from transformer_jax.tokenizers import PairTokenizer, Tokenizer

from .. import losses
from ..config import Config, TrainConfig
from ..data.batches import Batch, labelled_batch, pair_batch, tagged_batch
from ..data.labelled import Labelled, Target, load_labelled
from ..data.pairs import load_pairs
from ..data.tagged import encode_sentence, load_tagged
from ..data.targets import multi_hot
from ..entities import has_entities
from ..initialization import InitFrom
from ..resume import with_vocab_size
from .base import Task, bucket_by_length

NUM_VERSIONS = 16  # BPE-dropout versions of each training example; fewer,
MAX_EXAMPLES = 500_000  # where there would be many more examples than this: then each has some of the versions

Example = TypeVar("Example")


def _with_encoders(
    config: Config, tokenizer: Tokenizer, train: Sequence[Example], validation: Sequence[Example]
) -> tuple[list[tuple[Tokenizer, Example]], list[tuple[Tokenizer, Example]]]:
    """Pair each example with the tokenizer that encodes it; with BPE-dropout, a training example once per version."""
    rate = config.tokenizer.dropout
    plain = [(tokenizer, example) for example in validation]
    if not rate:
        return [(tokenizer, example) for example in train], plain
    encoders = [tokenizer.with_dropout(rate, config.train.seed, version) for version in range(NUM_VERSIONS)]
    num_versions = max(1, min(NUM_VERSIONS, MAX_EXAMPLES // len(train)))
    dropped = [
        (encoders[(i + n) % NUM_VERSIONS], example) for n in range(num_versions) for i, example in enumerate(train)
    ]
    return dropped, plain


def _describe_versions(encoded: Sequence, train: Sequence) -> str:
    return f" ({len(encoded) // len(train)} versions of each)" if len(encoded) > len(train) else ""


def _describe_long(number: int, max_len: int, action: str) -> str:
    return f"; {number:,} longer than {max_len} tokens were {action}" if number else ""


def classify(config: Config, init_from: InitFrom) -> Task:
    """Text classification: a SequenceClassifier on texts with one label each, or with any number of labels.

    A model of `train.init_from` that gives several labels a text continues to, whatever the data.
    """
    head_labels = init_from.run.labels if init_from.run else ()
    data = load_labelled(
        config.data,
        config.tokenizer,
        init_from.tokenizer,
        init_from.own_labels,
        head_labels,
        is_multi_label=init_from.problem_type == "multi_label_classification",
    )
    model_config = with_vocab_size(init_from.merge_config(config.model), data.tokenizer.vocab_size)
    init_from.check_model_type(SequenceClassifier)
    model = SequenceClassifier(model_config, len(data.labels), init_from.pooling(config.train.pooling))
    if data.is_multi_label:
        task = _labelled_task(
            config,
            model,
            model_config,
            data,
            losses.multi_label,
            functools.partial(multi_hot, num_labels=len(data.labels)),
        )
        return dataclasses.replace(
            task,
            description=f"{task.description}, {len(data.labels)} labels, any number of them a text",
            labels=data.labels,
            problem_type="multi_label_classification",
            counts=("micro_f1", "macro_f1", "exact_match"),
        )
    task = _labelled_task(
        config, model, model_config, data, losses.classify, functools.partial(np.array, dtype=np.int32)
    )
    return dataclasses.replace(
        task,
        description=f"{task.description}, {len(data.labels)} labels",
        labels=data.labels,
        problem_type="single_label_classification",
        counts=("accuracy", "macro_f1"),
    )


def regress(config: Config, init_from: InitFrom) -> Task:
    """Text regression: a SequenceClassifier of one class, whose logit is the number, on texts with a number each."""
    data = load_labelled(config.data, config.tokenizer, init_from.tokenizer, are_numbers=True)
    model_config = with_vocab_size(init_from.merge_config(config.model), data.tokenizer.vocab_size)
    init_from.check_model_type(SequenceClassifier)
    model = SequenceClassifier(model_config, 1, init_from.pooling(config.train.pooling))
    task = _labelled_task(
        config, model, model_config, data, losses.regress, functools.partial(np.array, dtype=np.float32)
    )
    return dataclasses.replace(task, problem_type="regression", counts=("mean_absolute_error",))


def _labelled_task(
    config: Config,
    model: SequenceClassifier,
    model_config: TransformerConfig,
    data: Labelled,
    loss_fn: Callable,
    to_array: Callable[[list[Target]], np.ndarray],
) -> Task:
    """Task on labelled texts; `to_array` makes an array [texts, ...] of their targets."""
    max_len = config.adapter.context(model_config.max_len)
    parts = _with_encoders(config, data.tokenizer, data.train, data.validation)
    encoded = [[encoder.encode_whole(text) for encoder, (text, _) in part] for part in parts]
    labels = [to_array([target for _, (_, target) in part]) for part in parts]
    num_cut = sum(len(tokens) > max_len for part in encoded for tokens in part)
    texts = [[tokens[:max_len] for tokens in part] for part in encoded]

    def make_batch(part: int, rows: np.ndarray, length: int, num_rows: int) -> Batch:
        return labelled_batch(texts[part], labels[part], rows, length, num_rows, data.tokenizer.pad_id)

    train_lengths, val_lengths = ([len(tokens) for tokens in part] for part in texts)
    batches = bucket_by_length(config, max_len, train_lengths, val_lengths, make_batch)
    return Task(
        model=model,
        tokenizer=data.tokenizer,
        loss_fn=loss_fn,
        train_batch=functools.partial(_with_token_dropout, batches.train_batch, config.train),
        eval_batches=batches.eval_batches,
        fingerprint=data.fingerprint,
        description=(
            f"{len(train_lengths):,} texts to train on{_describe_versions(parts[0], data.train)}, "
            f"{len(val_lengths):,} to validate on{_describe_long(num_cut, max_len, 'cut')}, "
            f"{batches.sampler.padding:.0%} padding, pooling={model.pooling}"
        ),
        num_targets=lambda batch: int(batch["is_token"].sum()),
        tokens_per_step=batches.sampler.mean_tokens,
        has_one_shape=False,
        has_perplexity=False,
    )


def _with_token_dropout(train_batch: Callable[[int], Batch], config: TrainConfig, step: int) -> Batch:
    """Batch with a random share of its tokens masked out, but never the first of a text. Iyyer et al. 2015."""
    batch = train_batch(step)
    if config.token_dropout:
        is_kept = np.random.default_rng((config.seed, step)).random(batch["tokens"].shape) >= config.token_dropout
        is_kept[:, 0] = True
        batch["is_token"] &= is_kept
    return batch


def tag(config: Config, init_from: InitFrom) -> Task:
    """Sequence tagging: a TokenTagger on sentences with a tag for each word."""
    head_labels = init_from.run.labels if init_from.run else ()
    data = load_tagged(config.data, config.tokenizer, init_from.tokenizer, init_from.own_labels, head_labels)
    model_config = with_vocab_size(init_from.merge_config(config.model), data.tokenizer.vocab_size)
    max_len = config.adapter.context(model_config.max_len)
    init_from.check_model_type(TokenTagger)
    index = {label: i for i, label in enumerate(data.labels)}
    longest_word = max(len(word) for part in (data.train, data.validation) for s in part for word in s.words)
    separator = init_from.word_separator(data.train[0].separator, longest_word)
    sentences = [[s._replace(separator=separator) for s in part] for part in (data.train, data.validation)]
    examples = _with_encoders(config, data.tokenizer, *sentences)
    encoded = [[encode_sentence(encoder, sentence, index) for encoder, sentence in part] for part in examples]
    num_words = sum(len(sentence.words) for part in examples for _, sentence in part)
    num_empty = num_words - sum(int(is_tagged.sum()) for part in encoded for _, _, is_tagged in part)
    num_cut = sum(len(tokens) > max_len for part in encoded for tokens, _, _ in part)
    parts = [[tuple(array[:max_len] for array in sentence) for sentence in part] for part in encoded]

    def make_batch(part: int, rows: np.ndarray, length: int, num_rows: int) -> Batch:
        return tagged_batch(parts[part], rows, length, num_rows, data.tokenizer.pad_id)

    train_lengths, val_lengths = ([len(sentence[0]) for sentence in part] for part in parts)
    batches = bucket_by_length(config, max_len, train_lengths, val_lengths, make_batch)
    return Task(
        model=TokenTagger(model_config, len(data.labels)),
        tokenizer=data.tokenizer,
        loss_fn=functools.partial(losses.tag, labels=data.labels),
        train_batch=batches.train_batch,
        eval_batches=batches.eval_batches,
        fingerprint=data.fingerprint,
        description=(
            f"{len(parts[0]):,} sentences to train on{_describe_versions(parts[0], data.train)}, {len(parts[1]):,} to "
            f"validate on, {len(data.labels)} tags{_describe_long(num_cut, max_len, 'cut')}"
            f"{f'; {num_empty:,} words without a token are not learned' if num_empty else ''}, "
            f"{batches.sampler.padding:.0%} padding"
        ),
        num_targets=lambda batch: int(batch["is_token"].sum()),
        tokens_per_step=batches.sampler.mean_tokens,
        has_one_shape=False,
        has_perplexity=False,
        counts=("accuracy", "entity_f1") if has_entities(data.labels) else ("accuracy",),
        labels=data.labels,
        separator=separator,
    )


def seq2seq(config: Config, init_from: InitFrom) -> Task:
    """Sequence to sequence: a Seq2Seq on pairs of texts; encoder and decoder have the config of `model`."""
    data = load_pairs(config.data, config.tokenizer, init_from.tokenizer)
    tokenizer = data.tokenizer
    source_size = tokenizer.source.vocab_size if isinstance(tokenizer, PairTokenizer) else 0
    model_config = init_from.merge_seq2seq_config(config.model, tokenizer.vocab_size, source_size)
    max_len = config.adapter.context(min(model_config.encoder.max_len, model_config.decoder.max_len))
    parts = _with_encoders(config, tokenizer, data.train, data.validation)
    encoded = [[encode_pair(encoder, init_from.decoder_start_id(), *pair) for encoder, pair in part] for part in parts]
    kept = [[pair for pair in part if len(pair[0]) <= max_len and len(pair[1]) <= max_len + 1] for part in encoded]
    num_dropped = sum(map(len, encoded)) - sum(map(len, kept))
    sources = [[source for source, _ in part] for part in kept]
    targets = [[target for _, target in part] for part in kept]

    def make_batch(part: int, rows: np.ndarray, length: int, num_rows: int) -> Batch:
        return pair_batch(sources[part], targets[part], rows, length, num_rows, tokenizer.pad_id)

    train_lengths, val_lengths = ([max(len(source), len(target) - 1) for source, target in part] for part in kept)
    batches = bucket_by_length(config, max_len, train_lengths, val_lengths, make_batch)
    return Task(
        model=Seq2Seq(model_config),
        tokenizer=tokenizer,
        loss_fn=functools.partial(losses.seq2seq, label_smoothing=config.train.label_smoothing),
        train_batch=batches.train_batch,
        eval_batches=batches.eval_batches,
        fingerprint=data.fingerprint,
        description=(
            f"{len(train_lengths):,} pairs to train on{_describe_versions(parts[0], data.train)}, "
            f"{len(val_lengths):,} to validate on{_describe_long(num_dropped, max_len, 'omitted')}, "
            f"{batches.sampler.padding:.0%} padding, {batches.sampler.steps_per_epoch:,} steps an epoch"
        ),
        num_targets=lambda batch: int(batch["target_is_token"][..., 1:].sum()),
        tokens_per_step=batches.sampler.mean_tokens,
        has_one_shape=False,
    )


def encode_pair(tokenizer: Tokenizer, start_id: int, source: str, target: str) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of a source, with its end, and of a target, with the token that starts a target and its end."""
    return tokenizer.encode_source(source), np.insert(tokenizer.encode_target(target), 0, start_id)
