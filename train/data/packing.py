"""Packed documents and chats: several in a row, none attends to another, and no token is dropped.

documents of 5, 2, 3, 1 and 9 tokens, rows of 6      0 0 0 0 0 3
(the last is split in two pieces that share          4 4 4 4 4 4
a token)                                             1 1 2 2 2 .
                                                     5 5 5 5 . .
"""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from transformer_jax.tokenizers import Tokenizer

from ..config import DataConfig, TokenizerConfig
from .batches import Batch, make_tokenizer, sha256, tokenizer_lesson, tokenizer_sha256
from .sources import load_documents, utf8


@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
    """Packed rows of documents or chats: a training and a validation split."""

    train: Batch  # of `pack`
    validation: Batch
    tokenizer: Tokenizer
    val_bytes_per_token: float | None  # UTF-8 bytes per target, which turns a loss per token into bits per byte
    fingerprint: dict[str, str | int]
    description: str


def load_packed(
    data_config: DataConfig, tokenizer_config: TokenizerConfig, tokenizer: Tokenizer | None, length: int
) -> Packed:
    """Load documents and pack them into rows of `length` tokens.

    Args:
      tokenizer: one to use; None: train one on the training documents.
    Raises:
      UserError: fewer than two documents; an error of the source or the tokenizer.
    """
    train, validation = load_documents(data_config)
    if tokenizer is None:
        tokenizer = make_tokenizer(tokenizer_config, tokenizer_lesson(tokenizer_config, train, validation))
    train_pieces = _encode_pieces(tokenizer, train, length)
    val_pieces = _encode_pieces(tokenizer, validation, length)
    train_rows = pack(train_pieces, length, tokenizer.pad_id)
    padding = 1 - sum(map(len, train_pieces)) / train_rows["tokens"].size
    fingerprint: dict[str, str | int] = {
        "documents_sha256": sha256(json.dumps([train, validation])),
        "train_documents": len(train),
        "val_documents": len(validation),
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
    }
    description = (
        f"{len(train):,} documents of {_num_targets(train_pieces):,} tokens to train on, {len(validation):,} to "
        f"validate on, {len(train_rows['tokens']):,} rows, {padding:.1%} padding"
    )
    num_bytes = sum(len(utf8(text)) for text in validation)
    return Packed(
        train_rows,
        pack(val_pieces, length, tokenizer.pad_id),
        tokenizer,
        num_bytes / _num_targets(val_pieces),
        fingerprint,
        description,
    )


def _encode_pieces(tokenizer: Tokenizer, documents: list[str], length: int) -> list[np.ndarray]:
    return [piece for text in documents for piece in split_pieces(tokenizer.encode_whole(text), length)]


def _num_targets(pieces: list[np.ndarray]) -> int:
    return sum(len(piece) - 1 for piece in pieces)


def split_pieces(tokens: np.ndarray, length: int) -> list[np.ndarray]:
    """Split a document into pieces of at most `length` tokens; neighbours share one, so that no target is lost."""
    return [tokens[i : i + length] for i in range(0, max(1, len(tokens) - 1), length - 1)]


def pack(pieces: list[np.ndarray], length: int, pad_id: int, are_targets: Sequence[np.ndarray] = ()) -> Batch:
    """Pack pieces of at most `length` tokens into rows: best-fit decreasing, the longest first, into the fullest row.

    Args:
      are_targets: bool, a mask of each piece; (): all tokens are targets.
    Returns:
      `tokens` int32, `is_token` bool and `segments` int32, [rows, length] each; `segments` holds the index of the
      piece at a position, and -1 at padding. With `are_targets` also `is_target` bool.
    """
    rows_by_room: list[list[int]] = [[] for _ in range(length + 1)]  # index: number of free positions
    starts = np.zeros((len(pieces), 2), np.int64)  # row and first position of each piece
    num_rows = 0
    for i in sorted(range(len(pieces)), key=lambda i: -len(pieces[i])):
        n = len(pieces[i])
        room = next((room for room in range(n, length + 1) if rows_by_room[room]), None)
        if room is None:
            room = length
            row = num_rows
            num_rows += 1
        else:
            row = rows_by_room[room].pop()
        starts[i] = row, length - room
        rows_by_room[room - n].append(row)
    tokens = np.full((num_rows, length), pad_id, np.int32)
    segments = np.full((num_rows, length), -1, np.int32)
    is_target = np.zeros((num_rows, length), bool)
    for i, (row, first) in enumerate(starts):
        place = slice(first, first + len(pieces[i]))
        tokens[row, place] = pieces[i]
        segments[row, place] = i
        is_target[row, place] = are_targets[i] if are_targets else True
    rows = {"tokens": tokens, "is_token": segments >= 0, "segments": segments}
    return rows | {"is_target": is_target} if are_targets else rows


def packed_batch(rows: Batch, chosen: np.ndarray, num_rows: int, pad_id: int) -> Batch:
    """Take the chosen rows, and add empty ones up to `num_rows`."""
    missing = [(0, num_rows - len(chosen)), (0, 0)]
    fill_values = {"tokens": pad_id, "is_token": False, "segments": -1, "is_target": False}
    return {name: np.pad(row[chosen], missing, constant_values=fill_values[name]) for name, row in rows.items()}
