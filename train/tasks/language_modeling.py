"""Tasks on running text: causal language modeling, masked language modeling, and T5's span corruption."""

import functools
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from transformer_jax.models import GPT, MaskedLM, Seq2Seq

from .. import losses
from ..config import Config
from ..data.batch_sampler import WindowSampler
from ..data.batches import Batch, eval_batches, load_corpus, window_batch
from ..data.corruption import corrupt_spans, mask_tokens, num_masked
from ..data.packing import Packed, load_packed, packed_batch
from ..entropy_floor import floor_of, paired, with_floor
from ..initialization import InitFrom
from ..resume import with_vocab_size
from .base import EVAL_TOKENS, Task, bucket_by_length

MEAN_SPAN = 3.0  # mean number of tokens in a corrupted span, as in T5


def _eval_rows(max_len: int) -> int:
    """Rows of an evaluation batch, a multiple of the number of devices."""
    rows = max(1, EVAL_TOKENS // max_len)
    return -(-rows // jax.device_count()) * jax.device_count()


def causal_lm(config: Config, init_from: InitFrom) -> Task:
    """Causal language modeling: a GPT on running text, or on documents that are packed into rows."""
    if config.data.documents:
        return _packed_documents(config, init_from)
    corpus = load_corpus(config.data, config.tokenizer, init_from.tokenizer)
    model_config = with_vocab_size(init_from.merge_config(config.model), corpus.tokenizer.vocab_size)
    max_len = config.adapter.context(model_config.max_len)
    init_from.check_model_type(GPT)
    sampler = WindowSampler(len(corpus.train_tokens), max_len, config.train.batch_size, config.train.seed)
    loss_fn: Callable = losses.causal_lm
    validation: Callable[[], Iterable[Batch]] = functools.partial(
        eval_batches, corpus.val_tokens, max_len, _eval_rows(max_len)
    )
    floor = floor_of(config.data.source, corpus.tokenizer)
    if floor:
        loss_fn = paired(loss_fn)
        validation = with_floor(validation, floor)

    return Task(
        model=GPT(model_config),
        tokenizer=corpus.tokenizer,
        loss_fn=loss_fn,
        train_batch=functools.partial(window_batch, corpus.train_tokens, sampler),
        eval_batches=validation,
        fingerprint=corpus.fingerprint,
        description=corpus.description,
        num_targets=lambda batch: int(batch["is_token"][..., 1:].sum()),
        tokens_per_step=config.train.batch_size * max_len,
        has_one_shape=True,
        bytes_per_token=corpus.val_bytes_per_token,
        counts=("gap",) if floor else (),
    )


def _packed_documents(config: Config, init_from: InitFrom) -> Task:
    """Causal language modeling on documents that are packed into rows."""
    max_len = config.adapter.context(init_from.merge_config(config.model).max_len)
    data = load_packed(config.data, config.tokenizer, init_from.tokenizer, max_len + 1)
    model_config = with_vocab_size(init_from.merge_config(config.model), data.tokenizer.vocab_size)
    init_from.check_model_type(GPT)
    return packed_task(config, GPT(model_config), data)


def packed_task(config: Config, model: GPT, data: Packed) -> Task:
    """Causal language modeling on packed rows."""
    parts = (data.train, data.validation)
    length = data.train["tokens"].shape[1]

    def make_batch(part: int, rows: np.ndarray, length: int, num_rows: int) -> Batch:
        return packed_batch(parts[part], rows, num_rows, data.tokenizer.pad_id)

    train_lengths, val_lengths = ([length] * len(part["tokens"]) for part in parts)
    batches = bucket_by_length(config, length, train_lengths, val_lengths, make_batch)
    return Task(
        model=model,
        tokenizer=data.tokenizer,
        loss_fn=losses.causal_lm,
        train_batch=batches.train_batch,
        eval_batches=batches.eval_batches,
        fingerprint=data.fingerprint,
        description=data.description,
        num_targets=lambda batch: int(losses.packed_targets(batch).sum()),
        tokens_per_step=config.train.batch_size * (length - 1),
        has_one_shape=True,
        bytes_per_token=data.val_bytes_per_token,
    )


def masked_lm(config: Config, init_from: InitFrom) -> Task:
    """Masked language modeling: a MaskedLM on running text; masked tokens are drawn again in every epoch."""
    corpus = load_corpus(config.data, config.tokenizer, init_from.tokenizer)
    tokenizer = corpus.tokenizer
    vocab_size = max(tokenizer.vocab_size, tokenizer.mask_id + 1)
    model_config = with_vocab_size(init_from.merge_config(config.model), vocab_size)
    max_len = config.adapter.context(model_config.max_len)
    init_from.check_model_type(MaskedLM)
    sampler = WindowSampler(len(corpus.train_tokens), max_len, config.train.batch_size, config.train.seed)

    def mask(batch: Batch, *seed: int) -> Batch:
        tokens = batch["tokens"][:, :-1]
        is_token = batch["is_token"][:, :-1]
        masked, is_chosen = mask_tokens(
            tokens, np.random.default_rng(seed), config.data.mask_fraction, tokenizer.mask_id, tokenizer.vocab_size
        )
        return {"tokens": masked, "is_token": is_token, "target": tokens, "is_target": is_chosen & is_token}

    def train_batch(step: int) -> Batch:
        return mask(window_batch(corpus.train_tokens, sampler, step), config.train.seed, step)

    def validation() -> Iterator[Batch]:
        for i, batch in enumerate(eval_batches(corpus.val_tokens, max_len, _eval_rows(max_len))):
            yield mask(batch, i)

    return Task(
        model=MaskedLM(model_config),
        tokenizer=tokenizer,
        loss_fn=losses.masked_lm,
        train_batch=train_batch,
        eval_batches=validation,
        fingerprint=corpus.fingerprint,
        description=corpus.description,
        num_targets=lambda batch: int(batch["is_token"].sum()),
        tokens_per_step=config.train.batch_size * max_len,
        has_one_shape=True,
        counts=("accuracy",),
    )


def spans(config: Config, init_from: InitFrom) -> Task:
    """Span corruption, the pre-training of T5: a Seq2Seq writes the missing spans, drawn again in every epoch."""
    corpus = load_corpus(config.data, config.tokenizer, init_from.tokenizer)
    tokenizer = corpus.tokenizer
    max_len = config.adapter.context(config.model.max_len) - 1
    first_sentinel = tokenizer.mask_id
    _, num_spans = num_masked(max_len, config.data.mask_fraction, MEAN_SPAN)
    model_config = init_from.merge_seq2seq_config(config.model, first_sentinel + num_spans)
    sampler = WindowSampler(len(corpus.train_tokens), max_len, config.train.batch_size, config.train.seed)

    def corrupt(tokens: np.ndarray, *seed: int) -> Batch:
        source, target = corrupt_spans(
            tokens,
            np.random.default_rng(seed),
            config.data.mask_fraction,
            MEAN_SPAN,
            first_sentinel,
            (init_from.decoder_start_id(), tokenizer.eos_id),
        )
        return {
            "source": source,
            "target": target,
            "source_is_token": np.ones(source.shape, bool),
            "target_is_token": np.ones(target.shape, bool),
        }

    def train_batch(step: int) -> Batch:
        return corrupt(window_batch(corpus.train_tokens, sampler, step)["tokens"][:, :-1], config.train.seed, step)

    def validation() -> Iterator[Batch]:
        windows = corpus.val_tokens[: len(corpus.val_tokens) // max_len * max_len].reshape(-1, max_len)
        rows = min(_eval_rows(max_len), len(windows) // jax.device_count() * jax.device_count())
        for i in range(0, len(windows) - rows + 1, max(rows, 1)):
            yield corrupt(windows[i : i + rows].astype(np.int32), i)

    return Task(
        model=Seq2Seq(model_config),
        tokenizer=tokenizer,
        loss_fn=losses.seq2seq,
        train_batch=train_batch,
        eval_batches=validation,
        fingerprint=corpus.fingerprint,
        description=f"{corpus.description}, {num_spans} spans in {max_len} tokens",
        num_targets=lambda batch: int(batch["target_is_token"][..., 1:].sum()),
        tokens_per_step=config.train.batch_size * max_len,
        has_one_shape=True,
    )
