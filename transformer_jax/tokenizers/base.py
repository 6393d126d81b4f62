"""What all tokenizers share, and the two that need no library: characters and bytes. The contract: tokenizers.py."""

import dataclasses
import functools
import re
from typing import Any

import numpy as np

from transformer_jax.errors import UserError

PAD_ID, BOS_ID, EOS_ID, FIRST_TEXT_ID = range(4)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """What all tokenizers share. Raises UserError when `learned` is nothing that training can have learned."""

    learned: tuple[str, ...] = ()
    kind = ""
    pad_id, bos_id, eos_id = PAD_ID, BOS_ID, EOS_ID

    @property
    def vocab_size(self) -> int:
        return FIRST_TEXT_ID + len(self.learned)

    @property
    def source(self) -> "Tokenizer":
        """The tokenizer of what an encoder reads: another one in a PairTokenizer."""
        return self

    @property
    def mask_id(self) -> int:
        """The first id that no text has: for what is hidden."""
        return self.vocab_size

    @classmethod
    def train(cls, text: str, vocab_size: int = 0) -> "Tokenizer":
        """A tokenizer for `text`; characters and bytes do not heed `vocab_size`."""
        return cls()

    def dropping(self, rate: float, *seed: int) -> "Tokenizer":
        """One that leaves out merges by chance, for training. Raises UserError: only `bpe` has merges."""
        raise UserError(f"tokenizer.dropout={rate}: {self.kind!r} has no merges to leave out. Take tokenizer.kind=bpe.")

    def to_dict(self) -> dict:
        """Plain data for JSON; `tokenizer_from_dict` is the way back."""
        return {"kind": self.kind, "learned": list(self.learned)}

    @property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """The tokens before and after a text that stands alone."""
        return np.array([self.bos_id], np.int32), np.array([self.eos_id], np.int32)

    def encode_piece(self, text: str) -> np.ndarray:
        """Token ids of a part of a text, int32 [T], without the tokens around a whole one."""
        return self.encode(text)

    def encode_source(self, text: str) -> np.ndarray:
        """Token ids of what an encoder reads, int32 [T]: the text, and the end."""
        return np.append(self.encode(text), self.eos_id).astype(np.int32)

    def encode_target(self, text: str) -> np.ndarray:
        """Token ids that a decoder writes after the one that starts it, int32 [T]: the text, and the end."""
        return self.encode_source(text)

    def encode_whole(self, text: str) -> np.ndarray:
        """Token ids of a text that stands alone, int32 [T]: the token that begins one, the text, and the end."""
        return np.concatenate([[self.bos_id], self.encode(text), [self.eos_id]]).astype(np.int32)

    def decode(self, ids: Any) -> str:
        """The text of integers [T]. Raises UserError for an id outside the vocabulary, or no such sequence."""
        ids = np.asarray(ids)
        if ids.size and (ids.ndim != 1 or ids.dtype.kind not in "iu"):
            raise UserError(f"ids: must be integers [T], not {ids.dtype} {list(ids.shape)}. Decode row by row.")
        if (outside := np.flatnonzero((ids < 0) | (ids >= self.vocab_size))).size:
            rule = f"must be at least 0 and below vocab_size={self.vocab_size}. Decode with the tokenizer that made it"
            raise UserError(f"id {ids[outside[0]]} at position {outside[0]}: {rule}.")
        return self._decode(ids[ids >= FIRST_TEXT_ID].astype(np.int64) - FIRST_TEXT_ID)


@dataclasses.dataclass(frozen=True)
class CharTokenizer(Tokenizer):
    """One id per character; it learns the characters of the training text, sorted by code point."""

    kind = "char"

    def __post_init__(self):
        if list(self.learned) != sorted(set("".join(self.learned))):
            raise malformed("single characters for kind 'char', sorted by code point, each once")

    @classmethod
    def train(cls, text: str, vocab_size: int = 0) -> "CharTokenizer":
        return cls(tuple(sorted(set(text))))

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32 [T], one per character. Raises UserError for a character that has none."""
        ids = self._id_of_code[_code_points(text)]
        if (unknown := np.flatnonzero(ids < 0)).size:
            raise no_id(self.kind, text, unknown[0], "byte or bpe")
        return ids

    def _decode(self, ids: np.ndarray) -> str:
        return _code_points("".join(self.learned))[ids].tobytes().decode("utf-32-le", "surrogatepass")

    @functools.cached_property
    def _id_of_code(self) -> np.ndarray:
        table = np.full(0x110000, -1, np.int32)
        table[_code_points("".join(self.learned))] = np.arange(FIRST_TEXT_ID, self.vocab_size)
        return table


@dataclasses.dataclass(frozen=True)
class ByteTokenizer(Tokenizer):
    """One id per byte of UTF-8; it learns nothing. Bytes that are no UTF-8, as a model may sample, decode to U+FFFD."""

    kind = "byte"
    vocab_size = FIRST_TEXT_ID + 256

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32 [T], one per byte; a lone surrogate is three, as if UTF-8 allowed it."""
        return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int32) + FIRST_TEXT_ID

    def _decode(self, ids: np.ndarray) -> str:
        # Lone surrogates apart, so that what one byte becomes depends on its neighbours only, not on all of the text.
        parts = re.split(rb"(\xed[\xa0-\xbf][\x80-\xbf])", ids.astype(np.uint8).tobytes())
        errors = ("replace", "surrogatepass")
        return "".join(part.decode("utf-8", errors[i % 2]) for i, part in enumerate(parts))


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def no_id(kind: str, text: str, i: int, instead: str) -> UserError:
    """The error for a character at `i` that has no id."""
    line, column = text.count("\n", 0, i) + 1, i - text.rfind("\n", 0, i)
    character = f"{text[i]!r} (U+{ord(text[i]):04X}) at position {i} (line {line}, column {column})"
    return UserError(f"tokenizer.kind={kind!r}: no id for {character}. Take tokenizer.kind={instead}, or remove it.")


def malformed(rule: str) -> UserError:
    """The error for a saved tokenizer that is none."""
    return UserError(f"saved tokenizer: must hold {rule}. Copy it anew from the run it belongs to.")
