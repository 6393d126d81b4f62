"""From text to batches: dicts of arrays, [B, ...] each.

Of running text: `tokens` int32 [B, T + 1] and `is_token` bool [B, T + 1], where T = max_len. Inputs are tokens[:, :-1]
and targets tokens[:, 1:]; a target counts where its is_token is True.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence

import grain
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
    """The batches of steps 0 to num_steps - 1, each made when it is asked for."""

    make: Callable[[int], Batch]
    num_steps: int

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> Batch:
        return self.make(step)


def prefetch(make: Callable[[int], Batch], start_step: int, num_steps: int) -> Iterator[Batch]:
    """make(start_step), ..., make(num_steps - 1), in order, made ahead of time in a thread of their own."""
    batches = grain.MapDataset.source(_Batches(make, num_steps))[start_step:]
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


def fill(texts: Sequence[np.ndarray], rows: np.ndarray, length: int, num_rows: int, pad_id: int) -> tuple:
    """Texts as a rectangle.

    Args:
      texts: token ids, one array for each example; rows: those to take.
      length, num_rows: of the rectangle; what is beyond the texts is padding.
    Returns:
      tokens int32 and is_token bool [num_rows, length].
    """
    tokens, is_token = np.full((num_rows, length), pad_id, np.int32), np.zeros((num_rows, length), bool)
    for i, row in enumerate(rows):
        tokens[i, : len(texts[row])] = texts[row]
        is_token[i, : len(texts[row])] = True
    return tokens, is_token


def labelled_batch(
    texts: Sequence[np.ndarray], labels: np.ndarray, rows: np.ndarray, length: int, num_rows: int, pad_id: int
) -> Batch:
    """`tokens` and `is_token` as of `fill`, `label` int32 and `is_example` bool [num_rows]."""
    tokens, is_token = fill(texts, rows, length, num_rows, pad_id)
    label = np.zeros(num_rows, np.int32)
    label[: len(rows)] = labels[rows]
    return {"tokens": tokens, "is_token": is_token, "label": label, "is_example": np.arange(num_rows) < len(rows)}


def tagged_batch(sentences: Sequence[tuple], rows: np.ndarray, length: int, num_rows: int, pad_id: int) -> Batch:
    """Of `tagged.encode_sentence`: `tokens`, `is_token`, `tag` and `is_tagged`, [num_rows, length] each."""
    tokens, is_token = fill([sentence[0] for sentence in sentences], rows, length, num_rows, pad_id)
    tag, _ = fill([sentence[1] for sentence in sentences], rows, length, num_rows, 0)
    is_tagged, _ = fill([sentence[2] for sentence in sentences], rows, length, num_rows, 0)
    return {"tokens": tokens, "is_token": is_token, "tag": tag, "is_tagged": is_tagged.astype(bool)}


def pair_batch(
    sources: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    rows: np.ndarray,
    length: int,
    num_rows: int,
    pad_id: int,
) -> Batch:
    """`source` [num_rows, length] and `target` [num_rows, length + 1], as of `fill`, each with its `..._is_token`."""
    source, source_is_token = fill(sources, rows, length, num_rows, pad_id)
    target, target_is_token = fill(targets, rows, length + 1, num_rows, pad_id)
    return {"source": source, "target": target, "source_is_token": source_is_token, "target_is_token": target_is_token}


def window_batch(tokens: np.ndarray, order: WindowSampler, step: int) -> Batch:
    """The training batch of a step, from running text: int32 [order.num_tokens]."""
    index = order.starts(step)[:, None] + np.arange(order.max_len + 1)
    return {"tokens": tokens[index], "is_token": np.ones(index.shape, bool)}


def eval_batches(tokens: np.ndarray, max_len: int, batch_size: int) -> Iterator[Batch]:
    """All of `tokens`, int32 [n], in windows that follow each other: every token but the first is a target once.

    The last window is padded, and the last batch filled up with empty rows, so that all shapes are equal.
    """
    num_windows = -(-(len(tokens) - 1) // max_len)
    for first in range(0, num_windows, batch_size):
        window = np.arange(first, first + batch_size)[:, None]  # [B, 1]
        index = window * max_len + np.arange(max_len + 1)
        # The row after the last window is no example, even where the text's last token would be its first.
        is_token = (index < len(tokens)) & (window < num_windows)
        yield {"tokens": np.where(is_token, tokens[np.minimum(index, len(tokens) - 1)], PAD_ID), "is_token": is_token}


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """A text as token ids, in its two parts."""

    train_tokens: np.ndarray  # int32
    val_tokens: np.ndarray  # int32
    tokenizer: Tokenizer
    val_bytes_per_token: float  # UTF-8 bytes; turns a loss per token into bits per byte
    fingerprint: dict[str, str | int]  # equal when the text, the split and the tokenizer are

    @property
    def description(self) -> str:
        """How much there is, for people."""
        return f"{len(self.train_tokens):,} tokens to train on, {len(self.val_tokens):,} to validate on"


def load_corpus(
    data_config: DataConfig, tokenizer_config: TokenizerConfig, tokenizer: Tokenizer | None = None
) -> Corpus:
    """Load the text, split it, train a tokenizer unless one is given, and encode both parts.

    A bpe tokenizer learns from the training part only. A char tokenizer takes the characters of the whole text, so
    that validation meets none without an id; of the validation part it learns nothing else.

    Raises:
      UserError: what the source, the split or the tokenizer refuses; fewer than 2 validation tokens.
    """
    train_text, val_text = load_parts(data_config)
    text = train_text + val_text
    if tokenizer is None:
        lesson = text if tokenizer_config.kind == "char" else train_text
        tokenizer = make_tokenizer(tokenizer_config, lesson)
    train_tokens, val_tokens = tokenizer.encode(train_text), tokenizer.encode(val_text)
    if len(val_tokens) < 2:
        raise UserError(
            f"data.val_fraction={data_config.val_fraction}: the validation part has {len(val_tokens)} token, and needs "
            "at least 2, one to predict the other from. Take a larger fraction, or more text."
        )
    fingerprint = {
        "text_sha256": sha256(text),
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "train_tokens": len(train_tokens),
        "val_tokens": len(val_tokens),
    }
    bytes_per_token = len(utf8(val_text)) / len(val_tokens)
    return Corpus(train_tokens, val_tokens, tokenizer, bytes_per_token, fingerprint)


def make_tokenizer(config: TokenizerConfig, lesson: str) -> Tokenizer:
    """A tokenizer that learned from `lesson`, or the one of `tokenizer.path`, which has learned already."""
    if config.path:
        return open_tokenizer(config.path)
    return train_tokenizer(config.kind, config.vocab_size, lesson)


def utf8(text: str) -> bytes:
    """The bytes of a text; a lone surrogate is three."""
    return text.encode("utf-8", "surrogatepass")


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """Equal when the tokenizers are."""
    return sha256(json.dumps(tokenizer.to_dict(), sort_keys=True))


def sha256(text: str) -> str:
    """Equal when the texts are."""
    return hashlib.sha256(utf8(text)).hexdigest()
