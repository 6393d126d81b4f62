"""Batches of token sequences: padding, truncation, length buckets, batches of similar length."""

from collections.abc import Iterator, Sequence

import numpy as np

from transformer_jax.errors import UserError, printable, warn
from transformer_jax.tokenizers import Tokenizer

SMALLEST_BUCKET = 32  # of prompts and caches: 32, 64, 96, 128, 192, 256, 384, 512, ... up to the context
LENGTH_MULTIPLE = 16  # lengths of batches without a cache are multiples of it, so that few shapes are compiled


def bucket(size: int, max_size: int, smallest: int = SMALLEST_BUCKET) -> int:
    """Smallest bucket with room for `size`, at most `max_size`. Buckets are 1, 2, 3, 4, 6, 8, ... times `smallest`.

    Every slot is read at every step: 192 tokens cost a tenth more in 256 slots than in 192.
    """
    double = max(smallest, 1 << (size - 1).bit_length())
    between = double // 4 * 3
    return min(between if max(size, 3 * smallest) <= between else double, max_size)


def padded_length(lengths: Sequence[int], max_length: int) -> int:
    """Length of the longest, at least 1, rounded up to a multiple of LENGTH_MULTIPLE, but at most `max_length`."""
    longest = max(1, *lengths)
    return min(-(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, max_length)


def pad_batch(
    rows: Sequence[np.ndarray], width: int, pad_id: int, *, end: int | None = None, num_rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int32 and is_token bool, [num_rows, width] each, of rows [T].

    Args:
      end: index at which every row ends, with padding on both sides; None: rows begin at index 0.
      num_rows: rows of the result, the last ones padding alone; None: as many as there are.
    """
    num_rows = len(rows) if num_rows is None else num_rows
    tokens = np.full((num_rows, width), pad_id, np.int32)
    is_token = np.zeros((num_rows, width), bool)
    for i, row in enumerate(rows):
        first = 0 if end is None else end - len(row)
        tokens[i, first : first + len(row)] = row
        is_token[i, first : first + len(row)] = True
    return tokens, is_token


def unpad(tokens: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """The first `length` tokens of each row."""
    return [row[:length] for row, length in zip(np.asarray(tokens), np.asarray(lengths).tolist(), strict=True)]


def truncate(name: str, rows: list[np.ndarray], max_length: int, keeps_end: bool = False) -> list[np.ndarray]:
    """Token sequences [T] of at most `max_length`. A warning on stderr reports how many were longer.

    Args:
      name: plural noun of the sequences, for the warning.
      keeps_end: the last token stays, and those before it are removed.
    """
    if num_long := sum(len(tokens) > max_length for tokens in rows):
        warn(f"{num_long} of {len(rows)} {name} are cut to {max_length} tokens.")
    num_kept = int(keeps_end)
    return [
        tokens
        if len(tokens) <= max_length
        else np.concatenate([tokens[: max_length - num_kept], tokens[len(tokens) - num_kept :]])
        for tokens in rows
    ]


def check_ids(name: str, rows: Sequence[np.ndarray], tokenizer: Tokenizer, vocab_size: int) -> None:
    """Check that a model with `vocab_size` ids knows all tokens of texts. Tokens may have been added to its tokenizer.

    Args:
      name: noun of the texts, for the error.
    Raises:
      UserError: a token beyond the last id, with its name and id.
    """
    largest = max((int(row.max()) for row in rows if len(row)), default=-1)
    if largest >= vocab_size:
        token = printable(tokenizer.token_name(largest))[:80]
        size = max(tokenizer.vocab_size, largest + 1)
        raise UserError(
            f"{name}: has token {token!r} of id {largest}, and the model knows ids 0 to {vocab_size - 1}. Train it "
            f"with train.resize_vocab=True and model.vocab_size={size}, or omit the token."
        )


def known_ids(tokens: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """The ids of a text that its tokenizer has. A model may have more, to round up its size: these have no text."""
    return tokens[tokens < tokenizer.vocab_size]


def batch_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Batches of the indices 0, 1, ..., those of similar length together."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for first in range(0, len(order), batch_size):
        yield order[first : first + batch_size]
