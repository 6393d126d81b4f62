"""Batches: dicts of arrays, [B, ...] each, padded with a mask; prefetching; the corpus of running text.

A batch of running text has `tokens` int32 [B, T + 1] and `is_token` bool [B, T + 1], where T = max_len. Inputs are
tokens[:, :-1] and targets tokens[:, 1:]; a target counts where its is_token is True.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from transformer_jax.errors import UserError
from transformer_jax.run import open_tokenizer
from transformer_jax.tokenizers import PAD_ID, Tokenizer, train_tokenizer

from ..config import DataConfig, TokenizerConfig
from .batch_sampler import WindowSampler
from .sources import load_parts

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
    """Training batch of a step, from running text: int32 [sampler.num_tokens]."""
    index = sampler.starts(step)[:, None] + np.arange(sampler.max_len + 1)
    return {"tokens": tokens[index], "is_token": np.ones(index.shape, bool)}


def eval_batches(tokens: np.ndarray, max_len: int, batch_size: int) -> Iterator[Batch]:
    """Evaluation batches of consecutive windows of `tokens`, int32 [n]: every token but the first is a target once.

    The last window is padded, and the last batch is filled with empty rows, so that all shapes are equal.
    """
    num_windows = -(-(len(tokens) - 1) // max_len)
    for first in range(0, num_windows, batch_size):
        window = np.arange(first, first + batch_size)[:, None]  # [B, 1]
        index = window * max_len + np.arange(max_len + 1)
        # A row after the last window is no example, although the text's last token would be its first.
        is_token = (index < len(tokens)) & (window < num_windows)
        yield {"tokens": np.where(is_token, tokens[np.minimum(index, len(tokens) - 1)], PAD_ID), "is_token": is_token}


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Running text as token ids: a training and a validation split."""

    train_tokens: np.ndarray  # int32
    val_tokens: np.ndarray  # int32
    tokenizer: Tokenizer
    val_bytes_per_token: float  # UTF-8 bytes; turns a loss per token into bits per byte
    fingerprint: dict[str, str | int]  # equal if the text, the split and the tokenizer are

    @property
    def description(self) -> str:
        """Size of both splits, to be printed."""
        return f"{len(self.train_tokens):,} tokens to train on, {len(self.val_tokens):,} to validate on"


def load_corpus(
    data_config: DataConfig, tokenizer_config: TokenizerConfig, tokenizer: Tokenizer | None = None
) -> Corpus:
    """Load the text, split it, train a tokenizer unless one is given, and encode both parts.

    A bpe tokenizer learns from the training split only. A char tokenizer takes the characters of the whole text, so
    that every validation character has an id; it learns nothing else from the validation split.

    Args:
      tokenizer: one to use; None: train one.
    Raises:
      UserError: an error of the source, the split or the tokenizer; fewer than 2 validation tokens.
    """
    train_text, val_text = load_parts(data_config)
    text = train_text + val_text
    if tokenizer is None:
        lesson = text if tokenizer_config.kind == "char" else train_text
        tokenizer = make_tokenizer(tokenizer_config, lesson)
    train_tokens = tokenizer.encode(train_text)
    val_tokens = tokenizer.encode(val_text)
    if len(val_tokens) < 2:
        raise UserError(
            f"data.val_fraction={data_config.val_fraction}: the validation split has {len(val_tokens)} token, and "
            "needs at least 2, one to predict from the other. Take a larger fraction, or more text."
        )
    fingerprint: dict[str, str | int] = {
        "text_sha256": sha256(text),
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "train_tokens": len(train_tokens),
        "val_tokens": len(val_tokens),
    }
    bytes_per_token = len(utf8(val_text)) / len(val_tokens)
    return Corpus(train_tokens, val_tokens, tokenizer, bytes_per_token, fingerprint)


def tokenizer_lesson(config: TokenizerConfig, train: Sequence[str], validation: Sequence[str]) -> str:
    """Text to train a tokenizer on: the training texts; for characters also validation, so that each has an id."""
    return "\n".join([*train, *(validation if config.kind == "char" else ())])


def make_tokenizer(config: TokenizerConfig, lesson: str) -> Tokenizer:
    """Train a tokenizer on the text `lesson`, or load the trained one of `tokenizer.path`."""
    if config.path:
        return open_tokenizer(config.path)
    return train_tokenizer(config.kind, config.vocab_size, lesson)


def utf8(text: str) -> bytes:
    """UTF-8 bytes of a text; a lone surrogate becomes three."""
    return text.encode("utf-8", "surrogatepass")


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
