"""Documents packed into rows, several in one: no token is dropped, and none sees another document.

documents of 5, 2, 3, 1 and 9 tokens, rows of 6      0 0 0 0 0 3
(the last is cut in two that share a token)          4 4 4 4 4 4
                                                     1 1 2 2 2 .
                                                     5 5 5 5 . .
"""

import dataclasses
import json

import numpy as np

from transformer_jax.tokenizers import Tokenizer

from ..config import DataConfig, TokenizerConfig
from .batches import Batch, make_tokenizer, sha256, tokenizer_sha256, utf8
from .sources import load_documents


@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
    """Rows of documents in two parts."""

    train: Batch  # tokens int32, is_token bool and segments int32, [rows, length] each
    validation: Batch
    tokenizer: Tokenizer
    val_bytes_per_token: float  # of a target
    fingerprint: dict[str, str | int]
    description: str


def load_packed(
    data_config: DataConfig, tokenizer_config: TokenizerConfig, tokenizer: Tokenizer | None, length: int
) -> Packed:
    """Documents as rows of `length` tokens. A tokenizer, unless one is given, learns from the training documents."""
    parts = load_documents(data_config)
    if tokenizer is None:
        lesson = "\n".join(parts[0] + (parts[1] if tokenizer_config.kind == "char" else []))
        tokenizer = make_tokenizer(tokenizer_config, lesson)
    pieces = [[piece for text in part for piece in cut(tokenizer.encode_whole(text), length)] for part in parts]
    rows = [pack(part, length, tokenizer.pad_id) for part in pieces]
    num_targets = [sum(len(piece) - 1 for piece in part) for part in pieces]
    padding = 1 - sum(map(len, pieces[0])) / rows[0]["tokens"].size
    fingerprint = {
        "documents_sha256": sha256(json.dumps(parts)),
        "train_documents": len(parts[0]),
        "val_documents": len(parts[1]),
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
    }
    description = (
        f"{len(parts[0]):,} documents of {num_targets[0]:,} tokens to train on, {len(parts[1]):,} to validate on, "
        f"{len(rows[0]['tokens']):,} rows, {padding:.1%} padding"
    )
    num_bytes = sum(len(utf8(text)) for text in parts[1])
    return Packed(*rows, tokenizer, num_bytes / num_targets[1], fingerprint, description)


def cut(tokens: np.ndarray, length: int) -> list[np.ndarray]:
    """Pieces of at most `length` tokens; neighbours share one token, so that every token but the first is a target."""
    return [tokens[i : i + length] for i in range(0, max(1, len(tokens) - 1), length - 1)]


def pack(pieces: list[np.ndarray], length: int, pad_id: int) -> Batch:
    """Rows of `length` places that hold all pieces, each of at most `length` tokens; long ones first, where they fit.

    Returns:
      `tokens` int32, `is_token` bool and `segments` int32, [rows, length] each; a piece's places have its number, -1
      are padding.
    """
    room: list[list[int]] = [[] for _ in range(length + 1)]  # rows by the number of free places
    starts, num_rows = np.zeros((len(pieces), 2), np.int64), 0  # row and first place of each piece
    for i in sorted(range(len(pieces)), key=lambda i: -len(pieces[i])):
        n = len(pieces[i])
        free = next((free for free in range(n, length + 1) if room[free]), None)  # the fullest row that it fits in
        if free is None:
            row, free, num_rows = num_rows, length, num_rows + 1
        else:
            row = room[free].pop()
        starts[i] = row, length - free
        room[free - n].append(row)
    tokens, segments = np.full((num_rows, length), pad_id, np.int32), np.full((num_rows, length), -1, np.int32)
    for i, (row, first) in enumerate(starts):
        tokens[row, first : first + len(pieces[i])] = pieces[i]
        segments[row, first : first + len(pieces[i])] = i
    return {"tokens": tokens, "is_token": segments >= 0, "segments": segments}


def packed_batch(rows: Batch, chosen: np.ndarray, num_rows: int, pad_id: int) -> Batch:
    """The chosen rows, and empty ones up to `num_rows`."""
    missing = [(0, num_rows - len(chosen)), (0, 0)]
    fills = {"tokens": pad_id, "is_token": False, "segments": -1}
    return {name: np.pad(rows[name][chosen], missing, constant_values=fill) for name, fill in fills.items()}
