"""Batches: dicts of arrays, [B, ...] each, padded with a mask; prefetching; the corpus of running text.

A batch of running text has `tokens` int32 [B, T + 1] and `is_token` bool [B, T + 1], where T = max_len. Inputs are
tokens[:, :-1] and targets tokens[:, 1:]; a target counts where its is_token is True.
"""

import dataclasses
import functools
import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from transformer_jax.errors import UserError
from transformer_jax.run import open_tokenizer
from transformer_jax.tokenizers import PAD_ID, Tokenizer, train_tokenizer

from ..config import DataConfig, TokenizerConfig
from .batch_sampler import WindowSampler
from .progress import Progress
from .sources import RunningText, load_text, utf8
from .token_files import TokenCache, encode_in_memory

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class _Batches:
    """Random-access source of the batches of steps 0 to num_steps - 1, each made on access."""

    make: Callable[[int], Batch]
    num_steps: int

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> Batch:
        return self.make(step)


def prefetch(make: Callable[[int], Batch], start_step: int, num_steps: int) -> Iterator[Batch]:
    """Prefetch make(start_step), ..., make(num_steps - 1) in order, in a background thread."""
    import grain  # here, so that a machine without it can use everything but the loop

    batches = grain.MapDataset.source(_Batches(make, num_steps))[start_step:]
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


def pad_rows(
    sequences: Sequence[np.ndarray], chosen: np.ndarray, length: int, num_rows: int, pad_value: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pad the chosen sequences on the right to one rectangle, with its padding mask.

    Args:
      sequences: token ids, one array per example.
      chosen: indices of the examples, at most `num_rows`; further rows are padding.
      length: of every row.
    Returns:
      tokens int32 and is_token bool, [num_rows, length] each.
    """
    tokens = np.full((num_rows, length), pad_value, np.int32)
    is_token = np.zeros((num_rows, length), bool)
    for row, example in enumerate(chosen):
        tokens[row, : len(sequences[example])] = sequences[example]
        is_token[row, : len(sequences[example])] = True
    return tokens, is_token


def labelled_batch(
    texts: Sequence[np.ndarray], labels: np.ndarray, chosen: np.ndarray, length: int, num_rows: int, pad_id: int
) -> Batch:
    """Batch of labelled texts: `tokens`, `is_token`, and `label`, of their dtype, and `is_example`; one a row."""
    tokens, is_token = pad_rows(texts, chosen, length, num_rows, pad_id)
    label = np.zeros((num_rows, *labels.shape[1:]), labels.dtype)
    label[: len(chosen)] = labels[chosen]
    return {"tokens": tokens, "is_token": is_token, "label": label, "is_example": np.arange(num_rows) < len(chosen)}


def tagged_batch(sentences: Sequence[tuple], chosen: np.ndarray, length: int, num_rows: int, pad_id: int) -> Batch:
    """Batch of `tagged.encode_sentence`: `tokens`, `is_token`, `tag` and `is_tagged`, [num_rows, length] each."""
    tokens, is_token = pad_rows([sentence[0] for sentence in sentences], chosen, length, num_rows, pad_id)
    tag, _ = pad_rows([sentence[1] for sentence in sentences], chosen, length, num_rows, 0)
    is_tagged, _ = pad_rows([sentence[2] for sentence in sentences], chosen, length, num_rows, 0)
    return {"tokens": tokens, "is_token": is_token, "tag": tag, "is_tagged": is_tagged.astype(bool)}


def pair_batch(
    sources: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    chosen: np.ndarray,
    length: int,
    num_rows: int,
    pad_id: int,
) -> Batch:
    """Batch of pairs: `source` [num_rows, length] and `target` [num_rows, length + 1], each with its `..._is_token`."""
    source, source_is_token = pad_rows(sources, chosen, length, num_rows, pad_id)
    target, target_is_token = pad_rows(targets, chosen, length + 1, num_rows, pad_id)
    return {"source": source, "target": target, "source_is_token": source_is_token, "target_is_token": target_is_token}


def window_batch(tokens: np.ndarray, sampler: WindowSampler, step: int) -> Batch:
    """Training batch of a step, from running text: integers [sampler.num_tokens]."""
    index = sampler.starts(step)[:, None] + np.arange(sampler.max_len + 1)
    return {"tokens": tokens[index].astype(np.int32, copy=False), "is_token": np.ones(index.shape, bool)}


def eval_batches(tokens: np.ndarray, max_len: int, batch_size: int) -> Iterator[Batch]:
    """Evaluation batches of consecutive windows of `tokens`, integers [n]: every token but the first is a target once.

    The last window is padded, and the last batch is filled with empty rows, so that all shapes are equal.
    """
    num_windows = -(-(len(tokens) - 1) // max_len)
    for first in range(0, num_windows, batch_size):
        window = np.arange(first, first + batch_size)[:, None]  # [B, 1]
        index = window * max_len + np.arange(max_len + 1)
        # A row after the last window is no example, although the text's last token would be its first.
        is_token = (index < len(tokens)) & (window < num_windows)
        row_tokens = tokens[np.minimum(index, len(tokens) - 1)].astype(np.int32, copy=False)
        yield {"tokens": np.where(is_token, row_tokens, PAD_ID), "is_token": is_token}


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Running text as token ids: a training and a validation split."""

    train_tokens: np.ndarray  # integers; see `token_files.EncodedText`
    val_tokens: np.ndarray
    tokenizer: Tokenizer
    val_bytes_per_token: float  # UTF-8 bytes; turns a loss per token into bits per byte
    fingerprint: dict[str, str | int]  # equal if the text, the split and the tokenizer are
    file: Path | None  # of the tokens, which are memory-mapped; None: they are in memory

    @property
    def description(self) -> str:
        """Size of both splits, to be printed, and the file of their tokens."""
        sizes = f"{len(self.train_tokens):,} tokens to train on, {len(self.val_tokens):,} to validate on"
        return f"{sizes}, in {self.file}" if self.file else sizes


def load_corpus(
    data_config: DataConfig, tokenizer_config: TokenizerConfig, tokenizer: Tokenizer | None = None
) -> Corpus:
    """Load the text, split it, train a tokenizer unless one is given, and encode both parts.

    A bpe tokenizer learns from the training split only. A char tokenizer takes the characters of the whole text, so
    that every validation character has an id; it learns nothing else from the validation split.

    A text of more than `sources.IN_MEMORY_CHARS` characters is never in memory as a whole: its tokens are in a file
    (`token_files`), from which the same batches are read.

    Args:
      tokenizer: one to use; None: train one.
    Raises:
      UserError: an error of the source, the split, the tokenizer or the cache; fewer than 2 validation tokens.
      RunError: the file of the tokens cannot be written.
    """
    text = load_text(data_config)
    cache = TokenCache.of(data_config.cache_dir, text)
    train = functools.partial(_train_on_text, tokenizer_config, text)
    if tokenizer is None:
        tokenizer = cache.tokenizer(tokenizer_config, train) if cache and not tokenizer_config.path else train()
    tokenizer_digest = tokenizer_sha256(tokenizer)
    encoded = cache.tokens(tokenizer, tokenizer_digest) if cache else encode_in_memory(text, tokenizer)
    if len(encoded.val_tokens) < 2:
        raise UserError(
            f"data.val_fraction={data_config.val_fraction}: the validation split has {len(encoded.val_tokens)} token, "
            "and needs at least 2, one to predict from the other. Take a larger fraction, or more text."
        )
    fingerprint: dict[str, str | int] = {
        "text_sha256": text.sha256,
        "tokenizer_sha256": tokenizer_digest,
        "train_tokens": len(encoded.train_tokens),
        "val_tokens": len(encoded.val_tokens),
    }
    bytes_per_token = encoded.val_bytes / len(encoded.val_tokens)
    return Corpus(encoded.train_tokens, encoded.val_tokens, tokenizer, bytes_per_token, fingerprint, encoded.file)


def _train_on_text(config: TokenizerConfig, text: RunningText) -> Tokenizer:
    lesson = text.pieces() if config.kind == "char" else text.splits()[0]
    if text.is_in_memory:
        return make_tokenizer(config, lesson)
    total = text.num_chars if config.kind == "char" else text.num_train
    is_stopped = threading.Event()

    def pieces(progress: Progress) -> Iterator[str]:
        for piece in progress.counting(lesson):
            if is_stopped.is_set():
                raise RuntimeError("training of the tokenizer was stopped")
            yield piece

    # In a thread: Python handles a signal in the main thread, which would be in the library's code for minutes.
    with Progress("training the tokenizer", total) as progress, ThreadPoolExecutor(1) as pool:
        training = pool.submit(make_tokenizer, config, pieces(progress))
        try:
            return training.result()
        except BaseException:
            is_stopped.set()
            raise


def tokenizer_lesson(config: TokenizerConfig, train: Sequence[str], validation: Sequence[str]) -> str:
    """Text to train a tokenizer on: the training texts; for characters also validation, so that each has an id."""
    return "\n".join([*train, *(validation if config.kind == "char" else ())])


def make_tokenizer(config: TokenizerConfig, lesson: str | Iterable[str]) -> Tokenizer:
    """Train a tokenizer on the text `lesson`, or on its pieces, or load the trained one of `tokenizer.path`."""
    if config.path:
        return open_tokenizer(config.path)
    return train_tokenizer(config.kind, config.vocab_size, lesson)


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """Digest of a tokenizer: equal if the tokenizers are."""
    return sha256(json.dumps(tokenizer.to_dict(), sort_keys=True))


def sha256(text: str) -> str:
    """Digest of a text: equal if the texts are."""
    return hashlib.sha256(utf8(text)).hexdigest()


def examples_fingerprint(
    train: Sequence, validation: Sequence, labels: tuple[str, ...], tokenizer: Tokenizer
) -> dict[str, str | int]:
    """Fingerprint of labelled or tagged examples: equal if the examples, the labels and the tokenizer are."""
    return {
        "examples_sha256": sha256(json.dumps([train, validation])),
        "train_examples": len(train),
        "val_examples": len(validation),
        "labels": ", ".join(labels),
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
    }
