"""Tokenizer base class, and the two tokenizers that need no library: characters and bytes.

The contract of every tokenizer stands in __init__.py of this package.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from transformer_jax.errors import UserError

PAD_ID = 0
BOS_ID = 1
EOS_ID = 2
FIRST_TEXT_ID = 3
NUM_CODE_POINTS = 0x110000  # of Unicode


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Base class of all tokenizers: special ids, encoding with bos and eos, checked decoding.

    Attributes:
      learned: the vocabulary as strings, in a form of each kind's own.

    Raises:
      UserError: `learned` is nothing that training can produce.
    """

    learned: tuple[str, ...] = ()
    kind: ClassVar[str] = ""

    @property
    def pad_id(self) -> int:
        """Id of padding."""
        return PAD_ID

    @property
    def bos_id(self) -> int:
        """Id of the token at the beginning of a text."""
        return BOS_ID

    @property
    def eos_id(self) -> int:
        """Id of the token at the end of a text."""
        return EOS_ID

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ids included."""
        return FIRST_TEXT_ID + len(self.learned)

    @property
    def source(self) -> "Tokenizer":
        """The tokenizer of an encoder's input; it differs from this one only in a PairTokenizer."""
        return self

    @property
    def mask_id(self) -> int:
        """Id of the mask token of a masked language model: the first id that no text has."""
        return self.vocab_size

    @classmethod
    def train(cls, text: str | Iterable[str], vocab_size: int) -> "Tokenizer":
        """Train a tokenizer on a text, or on its pieces in order; characters and bytes ignore `vocab_size`."""
        raise NotImplementedError

    def with_dropout(self, rate: float, *seed: int) -> "Tokenizer":
        """BPE-dropout: this tokenizer with merges dropped at random, for training.

        Raises:
          UserError: a kind other than `bpe`, which has no merges.
        """
        raise UserError(f"tokenizer.dropout={rate}: {self.kind!r} has no merges to drop. Take tokenizer.kind=bpe.")

    def to_dict(self) -> dict:
        """Plain data for JSON; `tokenizer_from_dict` rebuilds the tokenizer from it."""
        return {"kind": self.kind, "learned": list(self.learned)}

    @property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """The special tokens before and after a complete text, int32 [1] each."""
        return np.array([self.bos_id], np.int32), np.array([self.eos_id], np.int32)

    def encode(self, text: str) -> np.ndarray:
        """Encode a text, int32 [T]. Raises UserError for a character that has no id."""
        raise NotImplementedError

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[np.ndarray]:
        """Encode a long text that comes in pieces, cut anywhere: int32 arrays that together are `encode` of the text.

        The memory that it needs is that of a few pieces, unless a kind says otherwise.
        """
        return map(self.encode, pieces)

    def encode_piece(self, text: str) -> np.ndarray:
        """Encode a part of a text, int32 [T], without special tokens."""
        return self.encode(text)

    def encode_continuation(self, text: str, allow_special: bool = False) -> np.ndarray:
        """Encode a text that follows another one, int32 [T]: no special tokens, no space that only a first word gets.

        Raises:
          UserError: as `encode_prompt`.
        """
        self._check_special(allow_special)
        return self.encode_piece(text)

    def encode_prompt(self, text: str, allow_special: bool = False) -> np.ndarray:
        """Encode the beginning of a text that will be continued, int32 [T]: special tokens before it, none after it.

        Args:
          allow_special: special tokens inside the text become their ids. Never for untrusted text.
        Raises:
          UserError: `allow_special`, and no text of this tokenizer becomes a special token.
        """
        self._check_special(allow_special)
        return self.encode(text)

    def encode_source(self, text: str, allow_special: bool = False) -> np.ndarray:
        """Encode the input of an encoder, int32 [T]: the text, then eos. Raises UserError as `encode_prompt`."""
        self._check_special(allow_special)
        return np.append(self.encode(text), self.eos_id).astype(np.int32)

    def _check_special(self, allow_special: bool) -> None:
        if allow_special:
            rule = f"the special tokens of a {self.kind!r} tokenizer have no text that could become one. Omit it"
            raise UserError(f"allow_special=True: {rule}.")

    def encode_target(self, text: str) -> np.ndarray:
        """Encode the output of a decoder, int32 [T]: the text, then eos, without the start token."""
        return self.encode_source(text)

    def encode_whole(self, text: str) -> np.ndarray:
        """Encode a complete text, int32 [T]: bos, the text, then eos."""
        return np.concatenate([[self.bos_id], self.encode(text), [self.eos_id]]).astype(np.int32)

    def token_name(self, i: int) -> str:
        """The token of an id, for messages."""
        return self.decode([i])

    def decode(self, ids: ArrayLike) -> str:
        """Decode integers [T] to a text, special ids skipped.

        Raises:
          UserError: an id outside the vocabulary, or anything but one sequence of integers.
        """
        ids = np.asarray(ids)
        if ids.size and (ids.ndim != 1 or ids.dtype.kind not in "iu"):
            raise UserError(f"ids: must be integers [T], not {ids.dtype} {list(ids.shape)}. Decode row by row.")
        if (outside := np.flatnonzero((ids < 0) | (ids >= self.vocab_size))).size:
            rule = f"must be at least 0 and below vocab_size={self.vocab_size}. Decode with the tokenizer that made it"
            raise UserError(f"id {ids[outside[0]]} at position {outside[0]}: {rule}.")
        return self._decode_text_ids(ids[ids >= FIRST_TEXT_ID].astype(np.int64) - FIRST_TEXT_ID)

    def _decode_text_ids(self, ids: np.ndarray) -> str:
        """Decode ids of text, int64 [T], counted from 0: special ids are removed and FIRST_TEXT_ID is subtracted."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class CharTokenizer(Tokenizer):
    """Character tokenizer: one id per character of the training text, sorted by code point."""

    kind = "char"

    def __post_init__(self) -> None:
        if list(self.learned) != sorted(set("".join(self.learned))):
            raise malformed("single characters for kind 'char', sorted by code point, each once")

    @classmethod
    def train(cls, text: str | Iterable[str], vocab_size: int = 0) -> "CharTokenizer":
        """Collect the characters of a text, or of its pieces; `vocab_size` is ignored."""
        is_used = np.zeros(NUM_CODE_POINTS, bool)
        for piece in [text] if isinstance(text, str) else text:
            is_used[_code_points(piece)] = True
        return cls(tuple(map(chr, np.flatnonzero(is_used).tolist())))

    def encode(self, text: str) -> np.ndarray:
        """Encode a text, int32 [T], one id per character. Raises UserError for an unknown character."""
        return next(self.encode_pieces([text]))

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[np.ndarray]:
        """Encode the pieces of a text one by one; an error names the position in the whole text."""
        before = TextPosition()
        for piece in pieces:
            ids = self._id_of_code[_code_points(piece)]
            if (unknown := np.flatnonzero(ids < 0)).size:
                raise no_id(self.kind, piece, unknown[0], "byte or bpe", before)
            yield ids
            before = before.after(piece)

    def _decode_text_ids(self, ids: np.ndarray) -> str:
        return _code_points("".join(self.learned))[ids].tobytes().decode("utf-32-le", "surrogatepass")

    @functools.cached_property
    def _id_of_code(self) -> np.ndarray:
        table = np.full(NUM_CODE_POINTS, -1, np.int32)
        table[_code_points("".join(self.learned))] = np.arange(FIRST_TEXT_ID, self.vocab_size)
        return table


@dataclasses.dataclass(frozen=True)
class ByteTokenizer(Tokenizer):
    """Byte tokenizer: one id per byte of UTF-8, nothing to train.

    Bytes that are not UTF-8, which a model may sample, decode to U+FFFD.
    """

    kind = "byte"

    @property
    def vocab_size(self) -> int:
        """Number of ids: 256 bytes and the special ids."""
        return FIRST_TEXT_ID + 256

    @classmethod
    def train(cls, text: str | Iterable[str] = "", vocab_size: int = 0) -> "ByteTokenizer":
        """Return the one byte tokenizer; both arguments are ignored."""
        return cls()

    def encode(self, text: str) -> np.ndarray:
        """Encode a text, int32 [T], one id per byte; a lone surrogate is three, as if UTF-8 allowed it."""
        return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int32) + FIRST_TEXT_ID

    def _decode_text_ids(self, ids: np.ndarray) -> str:
        # Lone surrogates are decoded apart, so that the text of a byte depends on its neighbours only.
        parts = re.split(rb"(\xed[\xa0-\xbf][\x80-\xbf])", ids.astype(np.uint8).tobytes())
        errors = ("replace", "surrogatepass")
        return "".join(part.decode("utf-8", errors[i % 2]) for i, part in enumerate(parts))


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


@dataclasses.dataclass(frozen=True)
class TextPosition:
    """Position in a text that comes in pieces, for messages."""

    index: int = 0  # of the character, from 0
    line: int = 1
    column: int = 1

    def after(self, piece: str) -> "TextPosition":
        """The position behind a piece that begins here."""
        num_lines = piece.count("\n")
        column = len(piece) - piece.rfind("\n") if num_lines else self.column + len(piece)
        return TextPosition(self.index + len(piece), self.line + num_lines, column)


def no_id(kind: str, text: str, i: int, alternative: str, before: TextPosition | None = None) -> UserError:
    """Return the error for a character, at index `i` of a text or of its piece behind `before`, that has no id."""
    at = (before or TextPosition()).after(text[:i])
    character = f"{text[i]!r} (U+{ord(text[i]):04X}) at position {at.index} (line {at.line}, column {at.column})"
    return UserError(
        f"tokenizer.kind={kind!r}: no id for {character}. Take tokenizer.kind={alternative}, or remove it."
    )


def malformed(rule: str) -> UserError:
    """Return the error for the saved data of a tokenizer that break `rule`."""
    return UserError(f"saved tokenizer: must hold {rule}. Copy it again from the run it belongs to.")
