"""Text to token ids and back, exactly: characters, bytes or byte-pair encoding.

The contract of every tokenizer:

    vocab_size         ids run from 0 to vocab_size - 1
    pad_id = 0, bos_id = 1, eos_id = 2; the ids of text begin at 3: no text, not even "<eos>", becomes a special id
    encode(text)       -> int32 [T], without bos or eos
    decode(ids)        -> str, special ids left out; decode(encode(text)) == text
    to_dict()          -> what `tokenizer_from_dict` makes an equal tokenizer from, also by way of JSON
"""

import dataclasses
import functools
import json
import re
from typing import Any

import numpy as np
import tokenizers as hugging_face
from tokenizers.pre_tokenizers import ByteLevel

from transformer_jax.config import UserError, choose

PAD_ID, BOS_ID, EOS_ID, FIRST_TEXT_ID = range(4)
PIECE_CHARS = 65536  # BPE takes long texts in pieces of about this length: 11 MB at once would fill 2 GB


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
    def mask_id(self) -> int:
        """The first id that no text has: for what is hidden."""
        return self.vocab_size

    @classmethod
    def train(cls, text: str, vocab_size: int = 0) -> "Tokenizer":
        """A tokenizer for `text`; only bpe heeds `vocab_size`."""
        return cls()

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
            raise _malformed("single characters for kind 'char', sorted by code point, each once")

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
        data = ids.astype(np.uint8).tobytes()
        try:
            return data.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return data.decode("utf-8", "replace")


@dataclasses.dataclass(frozen=True)
class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019, section 2.2).

    It learns merges, "th e", in order. The ids of text are first the 256 bytes, then the tokens that merges make.
    """

    kind = "bpe"

    def __post_init__(self):
        known = set(ByteLevel.alphabet())
        for merge in self.learned:
            pair = merge.split(" ")
            if len(pair) != 2 or not known.issuperset(pair):
                raise _malformed(f"merges of known tokens for kind 'bpe', not {merge!r:.80}")
            known.add("".join(pair))

    @classmethod
    def train(cls, text: str, vocab_size: int) -> "BPETokenizer":
        """Merges until there are `vocab_size` ids or no pair occurs twice. UserError: below 259; a lone surrogate."""
        if vocab_size < ByteTokenizer.vocab_size:
            rule = f"bpe needs at least {ByteTokenizer.vocab_size}, for 256 bytes and {FIRST_TEXT_ID} special ids"
            raise UserError(f"tokenizer.vocab_size={vocab_size}: {rule}. Take 4096, or tokenizer.kind=byte.")
        # The library reserves memory for all the ids asked for; a text yields fewer merges than it has bytes.
        num_ids = min(vocab_size - FIRST_TEXT_ID, 256 + 4 * len(text))
        trainer = hugging_face.trainers.BpeTrainer(
            vocab_size=num_ids, min_frequency=2, initial_alphabet=ByteLevel.alphabet(), show_progress=False
        )
        model = cls()._model
        model.train_from_iterator(_pieces(text), trainer)
        return cls(tuple(map(" ".join, json.loads(model.to_str())["model"]["merges"])))

    @property
    def vocab_size(self) -> int:
        return FIRST_TEXT_ID + self._model.get_vocab_size()

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32 [T]. Raises UserError for a lone surrogate, which UTF-8 cannot write."""
        pieces = self._model.encode_batch_fast(_pieces(text))
        return np.concatenate([np.array(piece.ids, np.int32) + FIRST_TEXT_ID for piece in pieces])

    def _decode(self, ids: np.ndarray) -> str:
        return self._model.decode(ids)

    @functools.cached_property
    def _model(self) -> hugging_face.Tokenizer:
        merges = [tuple(merge.split(" ")) for merge in self.learned]
        tokens = dict.fromkeys([*sorted(ByteLevel.alphabet()), *map("".join, merges)])  # two merges can make one token
        vocab = {token: i for i, token in enumerate(tokens)}
        # No special tokens: the library would also find them in users' text.
        model = hugging_face.Tokenizer(hugging_face.models.BPE(vocab, merges))
        model.pre_tokenizer = ByteLevel(add_prefix_space=False)
        model.decoder = hugging_face.decoders.ByteLevel()
        return model


TOKENIZERS = {"char": CharTokenizer, "byte": ByteTokenizer, "bpe": BPETokenizer}


def train_tokenizer(kind: str, vocab_size: int, text: str) -> Tokenizer:
    """A new tokenizer for `text`. Raises UserError for an unknown kind and for what its `train` refuses."""
    return choose(TOKENIZERS, kind, "tokenizer.kind").train(text, vocab_size)


def tokenizer_from_dict(values: Any) -> Tokenizer:
    """The tokenizer that `to_dict` described. Raises UserError for an unknown kind or malformed content."""
    kind, learned = (values.get("kind"), values.get("learned")) if isinstance(values, dict) else (None, None)
    if not isinstance(learned, list) or not all(isinstance(item, str) for item in [kind, *learned]):
        raise _malformed("a string 'kind' and a list of strings 'learned'")
    from transformer_jax.tokenizer_files import FILE_TOKENIZERS  # here: it builds on this file

    if kind in FILE_TOKENIZERS:
        return FILE_TOKENIZERS[kind][0](tuple(learned))
    return choose(TOKENIZERS, kind, "tokenizer.kind")(tuple(learned))


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _pieces(text: str) -> list[str]:
    """`text` cut where a word ends before a space or newline: GPT-2's pattern never joins the two."""
    if lone_surrogate := re.search(r"[\ud800-\udfff]", text):
        raise no_id("bpe", text, lone_surrogate.start(), "byte")
    return re.findall(rf"(?s).{{{PIECE_CHARS},}}?\S(?=[ \n])|.+", text) or [""]


def no_id(kind: str, text: str, i: int, instead: str) -> UserError:
    """The error for a character at `i` that has no id."""
    line, column = text.count("\n", 0, i) + 1, i - text.rfind("\n", 0, i)
    character = f"{text[i]!r} (U+{ord(text[i]):04X}) at position {i} (line {line}, column {column})"
    return UserError(f"tokenizer.kind={kind!r}: no id for {character}. Take tokenizer.kind={instead}, or remove it.")


def _malformed(rule: str) -> UserError:
    return UserError(f"saved tokenizer: must hold {rule}. Copy it anew from the run it belongs to.")
