"""Text to token ids and back, exactly: characters, bytes or byte-pair encoding.

The contract every tokenizer keeps:

    vocab_size         ids run from 0 to vocab_size - 1
    pad_id = 0, bos_id = 1, eos_id = 2; the ids of text follow from 3, and no text, not even "<eos>", becomes a special id
    encode(text)       -> int32 [T], without bos or eos
    decode(ids)        -> str, special ids left out; decode(encode(text)) == text
    to_dict()          -> what `tokenizer_from_dict` makes an equal tokenizer from, ready for JSON
"""

import dataclasses
import functools
import json
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from transformer_jax.config import UserError, choose

PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
NUM_SPECIAL = 3
NUM_BYTES = 256
PIECE_CHARS = 65536  # BPE works through long texts in pieces: 11 MB at once would take 2 GB


class Tokenizer:
    """What all tokenizers share."""

    kind: ClassVar[str]
    pad_id: ClassVar[int] = PAD_ID
    bos_id: ClassVar[int] = BOS_ID
    eos_id: ClassVar[int] = EOS_ID
    vocab_size: int

    def decode(self, ids: Any) -> str:
        """The text of `ids`, integers [T]; special ids are left out.

        Raises:
          UserError: an id that is negative or not below `vocab_size`; not one sequence of integers.
        """
        ids = np.asarray(ids)
        if ids.size == 0:
            return ""
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise UserError(f"ids of type {ids.dtype} and shape {ids.shape}: must be integers [T]. Decode row by row.")
        wrong = np.flatnonzero((ids < 0) | (ids >= self.vocab_size))
        if wrong.size:
            raise UserError(
                f"id {ids[wrong[0]]} at position {wrong[0]}: must be at least 0 and below vocab_size={self.vocab_size}. "
                "Decode with the tokenizer that the ids were made with."
            )
        return self._decode(ids[ids >= NUM_SPECIAL].astype(np.int64) - NUM_SPECIAL)


@dataclasses.dataclass(frozen=True)
class CharTokenizer(Tokenizer):
    """One id per character of `characters`, which are distinct and sorted by code point."""

    characters: str
    kind: ClassVar[str] = "char"

    @classmethod
    def train(cls, text: str, vocab_size: int = 0) -> "CharTokenizer":
        """The characters of `text`; `vocab_size` plays no part."""
        return cls("".join(sorted(set(text))))

    @classmethod
    def from_dict(cls, values: dict) -> "CharTokenizer":
        characters = values.get("characters")
        if not (_is_list_of_str(characters) and all(len(character) == 1 for character in characters)):
            raise _malformed(cls.kind, "'characters' must be a list of single characters")
        if characters != sorted(set(characters)):
            raise _malformed(cls.kind, "'characters' must be sorted by code point, each of them once")
        return cls("".join(characters))

    def to_dict(self) -> dict:
        # A list: in one string, two surrogates side by side would come back from JSON as one character.
        return {"kind": self.kind, "characters": list(self.characters)}

    @property
    def vocab_size(self) -> int:
        return NUM_SPECIAL + len(self.characters)

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32 [T], one per character. Raises UserError for a character that has none."""
        ids = self._id_of_code[_code_points(text)]
        unknown = np.flatnonzero(ids < 0)
        if unknown.size:
            raise UserError(
                f"tokenizer.kind='char': the character {_where(text, unknown[0])} is none of the "
                f"{len(self.characters)} it was trained on. Take tokenizer.kind=byte or bpe, or remove it."
            )
        return ids

    def _decode(self, ids: np.ndarray) -> str:
        return _code_points(self.characters)[ids].tobytes().decode("utf-32-le", "surrogatepass")

    @functools.cached_property
    def _id_of_code(self) -> np.ndarray:
        table = np.full(0x110000, -1, np.int32)
        table[_code_points(self.characters)] = np.arange(NUM_SPECIAL, self.vocab_size)
        return table


@dataclasses.dataclass(frozen=True)
class ByteTokenizer(Tokenizer):
    """One id per byte of UTF-8. Encodes any str; bytes that are no UTF-8 decode to U+FFFD, as a model may sample them."""

    kind: ClassVar[str] = "byte"
    vocab_size: ClassVar[int] = NUM_SPECIAL + NUM_BYTES

    @classmethod
    def train(cls, text: str = "", vocab_size: int = 0) -> "ByteTokenizer":
        """There is nothing to learn: neither argument plays a part."""
        return cls()

    @classmethod
    def from_dict(cls, values: dict) -> "ByteTokenizer":
        return cls()

    def to_dict(self) -> dict:
        return {"kind": self.kind}

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32 [T], one per byte."""
        return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int32) + NUM_SPECIAL

    def _decode(self, ids: np.ndarray) -> str:
        sampled = ids.astype(np.uint8).tobytes()
        try:
            return sampled.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return sampled.decode("utf-8", "replace")


@dataclasses.dataclass(frozen=True)
class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019, section 2.2), run by Hugging Face's library.

    `merges` is all there is to know: the ids of text are the 256 bytes, then one per merge that makes a new token.
    """

    merges: tuple[tuple[str, str], ...]
    kind: ClassVar[str] = "bpe"

    @classmethod
    def train(cls, text: str, vocab_size: int) -> "BPETokenizer":
        """Merges until there are `vocab_size` ids, special ones included, or until no pair occurs twice.

        Raises:
          UserError: `vocab_size` has no room for the bytes; a lone surrogate in `text`.
        """
        if vocab_size < NUM_SPECIAL + NUM_BYTES:
            raise UserError(
                f"tokenizer.vocab_size={vocab_size}: BPE needs at least {NUM_SPECIAL + NUM_BYTES}, for {NUM_BYTES} bytes "
                f"and {NUM_SPECIAL} special ids. Take more, or tokenizer.kind=byte."
            )
        _refuse_surrogates(text)
        trainer = trainers.BpeTrainer(
            # The library reserves memory for all ids it is asked for; a text gives no more merges than it has bytes.
            vocab_size=min(vocab_size - NUM_SPECIAL, NUM_BYTES + 4 * len(text)),
            min_frequency=2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        model = _byte_level(models.BPE())
        model.train_from_iterator(_pieces(text), trainer)
        return cls(tuple((left, right) for left, right in json.loads(model.to_str())["model"]["merges"]))

    @classmethod
    def from_dict(cls, values: dict) -> "BPETokenizer":
        merges = values.get("merges")
        if not (isinstance(merges, list) and all(_is_list_of_str(merge) and len(merge) == 2 for merge in merges)):
            raise _malformed(cls.kind, "'merges' must be a list of pairs of strings")
        known = set(pre_tokenizers.ByteLevel.alphabet())
        for left, right in merges:
            if not {left, right} <= known:
                raise _malformed(cls.kind, f"the merge {[left, right]} must join tokens that exist before it")
            known.add(left + right)
        return cls(tuple((left, right) for left, right in merges))

    def to_dict(self) -> dict:
        return {"kind": self.kind, "merges": [list(merge) for merge in self.merges]}

    @property
    def vocab_size(self) -> int:
        return NUM_SPECIAL + self._model.get_vocab_size()

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32 [T]. Raises UserError for a lone surrogate, which UTF-8 cannot write."""
        _refuse_surrogates(text)
        ids = [np.array(self._model.encode(piece).ids, np.int32) for piece in _pieces(text)]
        return np.concatenate([np.zeros(0, np.int32), *ids]) + np.int32(NUM_SPECIAL)

    def _decode(self, ids: np.ndarray) -> str:
        return self._model.decode(ids.tolist())

    @functools.cached_property
    def _model(self) -> HuggingFaceTokenizer:
        vocab = {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for left, right in self.merges:
            vocab.setdefault(left + right, len(vocab))
        return _byte_level(models.BPE(vocab, list(self.merges)))


TOKENIZERS = {"char": CharTokenizer, "byte": ByteTokenizer, "bpe": BPETokenizer}


def train_tokenizer(kind: str, vocab_size: int, text: str) -> Tokenizer:
    """A new tokenizer of `kind` for `text`. Raises UserError for an unknown kind and for what its `train` refuses."""
    return choose(TOKENIZERS, kind, "tokenizer.kind").train(text, vocab_size)


def tokenizer_from_dict(values: Any) -> Tokenizer:
    """The tokenizer that `to_dict` described. Raises UserError for an unknown kind or malformed content."""
    if not isinstance(values, dict) or not isinstance(values.get("kind"), str):
        raise UserError("saved tokenizer: must be a mapping with a 'kind'. Copy it anew from the run it belongs to.")
    return choose(TOKENIZERS, values["kind"], "tokenizer.kind").from_dict(values)


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _byte_level(model: models.BPE) -> HuggingFaceTokenizer:
    """GPT-2's splitting into words, and no special tokens: the library would find those in users' text."""
    tokenizer = HuggingFaceTokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pieces(text: str) -> Iterator[str]:
    """`text` cut before single spaces and newlines between words, where BPE begins a new word whatever stands around."""
    pattern = rf".{{{PIECE_CHARS},}}?\S(?=[ \n]\S)|.+"
    return (match[0] for match in re.finditer(pattern, text, re.DOTALL))


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"tokenizer.kind='bpe': the lone surrogate {_where(text, error.start)} cannot be written as UTF-8. "
            "Take tokenizer.kind=byte, or remove it."
        ) from None


def _where(text: str, index: int) -> str:
    line, column = text.count("\n", 0, index) + 1, index - text.rfind("\n", 0, index)
    return f"{text[index]!r} (U+{ord(text[index]):04X}) at position {index} (line {line}, column {column})"


def _is_list_of_str(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _malformed(kind: str, rule: str) -> UserError:
    return UserError(f"saved tokenizer of kind {kind!r}: {rule}. Copy it anew from the run it belongs to.")
