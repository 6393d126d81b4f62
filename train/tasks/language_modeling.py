"""Tasks on running text: causal and masked language modelling, and T5's spans."""

import functools
from collections.abc import Iterator

import jax
import numpy as np

from transformer_jax.models import GPT, MaskedLM, Seq2Seq

from .. import losses
from ..config import Config
from ..data.batch_sampler import WindowSampler
from ..data.batches import Batch, eval_batches, load_corpus, window_batch
from ..data.corruption import corrupt_spans, mask_tokens, num_masked
from ..data.packing import load_packed, packed_batch
from ..entropy_floor import floor_of, paired, with_floor
from ..initialization import InitFrom
from ..resume import with_vocabulary
from .base import EVAL_TOKENS, Task, by_length

MEAN_SPAN = 3.0  # tokens in a gap, in the mean, as in T5


def _eval_rows(max_len: int) -> int:
    rows = max(1, EVAL_TOKENS // max_len)
    return -(-rows // jax.device_count()) * jax.device_count()  # the devices share them


def causal_lm(config: Config, init_from: InitFrom, meta: dict | None) -> Task:
    """A GPT on running text, or on documents that are packed into rows."""
    if config.data.documents:
        return _documents(config, init_from)
    corpus = load_corpus(config.data, config.tokenizer, init_from.tokenizer)
    shape = with_vocabulary(init_from.merged(config.model), corpus.tokenizer.vocab_size)
    init_from.check_kind(GPT)
    order = WindowSampler(len(corpus.train_tokens), shape.max_len, config.train.batch_size, config.train.seed)
    loss_fn = losses.causal_lm
    validation = functools.partial(eval_batches, corpus.val_tokens, shape.max_len, _eval_rows(shape.max_len))
    if floor := floor_of(config.data.source, corpus.tokenizer):
        loss_fn, validation = paired(loss_fn), with_floor(validation, floor)

    return Task(
        GPT(shape),
        corpus.tokenizer,
        loss_fn,
        functools.partial(window_batch, corpus.train_tokens, order),
        validation,
        corpus.fingerprint,
        corpus.description,
        lambda batch: int(batch["is_token"][..., 1:].sum()),
        config.train.batch_size * shape.max_len,
        has_one_shape=True,
        bytes_per_token=corpus.val_bytes_per_token,
    )


def _documents(config: Config, init_from: InitFrom) -> Task:
    max_len = init_from.merged(config.model).max_len
    data = load_packed(config.data, config.tokenizer, init_from.tokenizer, max_len + 1)
    shape = with_vocabulary(init_from.merged(config.model), data.tokenizer.vocab_size)
    init_from.check_kind(GPT)
    parts = (data.train, data.validation)
    _, *batches = by_length(
        config,
        max_len + 1,
        [[max_len + 1] * len(part["tokens"]) for part in parts],
        lambda part, rows, length, num_rows: packed_batch(parts[part], rows, num_rows, data.tokenizer.pad_id),
    )
    return Task(
        GPT(shape),
        data.tokenizer,
        losses.causal_lm,
        *batches,
        data.fingerprint,
        data.description,
        lambda batch: int(losses.packed_targets(batch).sum()),
        config.train.batch_size * shape.max_len,
        has_one_shape=True,
        bytes_per_token=data.val_bytes_per_token,
    )


def masked_lm(config: Config, init_from: InitFrom, meta: dict | None) -> Task:
    """A MaskedLM on running text; the gaps of a window are drawn anew in every epoch."""
    corpus = load_corpus(config.data, config.tokenizer, init_from.tokenizer)
    tokenizer = corpus.tokenizer
    shape = with_vocabulary(init_from.merged(config.model), max(tokenizer.vocab_size, tokenizer.mask_id + 1))
    init_from.check_kind(MaskedLM)
    order = WindowSampler(len(corpus.train_tokens), shape.max_len, config.train.batch_size, config.train.seed)

    def with_gaps(batch: Batch, *seed: int) -> Batch:
        tokens, is_token = batch["tokens"][:, :-1], batch["is_token"][:, :-1]
        random, fraction = np.random.default_rng(seed), config.data.mask_fraction
        gaps, is_chosen = mask_tokens(tokens, random, fraction, tokenizer.mask_id, tokenizer.vocab_size)
        return {"tokens": gaps, "is_token": is_token, "target": tokens, "is_target": is_chosen & is_token}

    def validation() -> Iterator[Batch]:
        for i, batch in enumerate(eval_batches(corpus.val_tokens, shape.max_len, _eval_rows(shape.max_len))):
            yield with_gaps(batch, i)

    return Task(
        MaskedLM(shape),
        tokenizer,
        losses.masked_lm,
        lambda step: with_gaps(window_batch(corpus.train_tokens, order, step), config.train.seed, step),
        validation,
        corpus.fingerprint,
        corpus.description,
        lambda batch: int(batch["is_token"].sum()),
        config.train.batch_size * shape.max_len,
        has_one_shape=True,
    )


def spans(config: Config, init_from: InitFrom, meta: dict | None) -> Task:
    """A Seq2Seq that writes what is missing in running text, as T5 is trained; gaps are drawn anew in every epoch."""
    corpus = load_corpus(config.data, config.tokenizer, init_from.tokenizer)
    tokenizer, max_len = corpus.tokenizer, config.model.max_len - 1
    first_sentinel, (_, num_spans) = tokenizer.mask_id, num_masked(max_len, config.data.mask_fraction, MEAN_SPAN)
    shape = init_from.merged_sides(config.model, first_sentinel + num_spans)
    order = WindowSampler(len(corpus.train_tokens), max_len, config.train.batch_size, config.train.seed)

    def with_gaps(tokens: np.ndarray, *seed: int) -> Batch:
        source, target = corrupt_spans(
            tokens,
            np.random.default_rng(seed),
            config.data.mask_fraction,
            MEAN_SPAN,
            first_sentinel,
            (init_from.start_id(), tokenizer.eos_id),
        )
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
        Seq2Seq(shape),
        tokenizer,
        losses.seq2seq,
        train_batch,
        validation,
        corpus.fingerprint,
        f"{corpus.description}, {num_spans} gaps in {max_len} tokens",
        lambda batch: int(batch["target_is_token"][..., 1:].sum()),
        config.train.batch_size * max_len,
        has_one_shape=True,
    )
