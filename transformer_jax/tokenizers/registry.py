"""Tokenizer registry: train a tokenizer by kind, rebuild one from its dict; a pair of tokenizers for translation."""

import dataclasses
import json
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike

from transformer_jax.errors import choose
from transformer_jax.tokenizers.base import ByteTokenizer, CharTokenizer, Tokenizer, malformed
from transformer_jax.tokenizers.pretrained import FILE_TOKENIZERS
from transformer_jax.tokenizers.subwords import BPETokenizer, UnigramTokenizer, WordPieceTokenizer


@dataclasses.dataclass(frozen=True)
class PairTokenizer(Tokenizer):
    """Pair of tokenizers, one for the source and one for the target; `encode`, `decode` and ids are the target's."""

    sides: tuple[Tokenizer, ...] = ()  # source, target
    kind = "pair"

    @classmethod
    def of(cls, source: Tokenizer, target: Tokenizer) -> "PairTokenizer":
        """Make the pair of two tokenizers."""
        return cls(sides=(source, target))

    def to_dict(self) -> dict:
        """Plain data for JSON: `learned` holds the JSON of both tokenizers."""
        return {"kind": self.kind, "learned": [json.dumps(side.to_dict()) for side in self.sides]}

    @property
    def source(self) -> Tokenizer:
        """The tokenizer of an encoder's input."""
        return self.sides[0]

    @property
    def target(self) -> Tokenizer:
        """The tokenizer of a decoder's output."""
        return self.sides[1]

    @property
    def vocab_size(self) -> int:
        """Number of ids of the target."""
        return self.target.vocab_size

    def encode(self, text: str) -> np.ndarray:
        """Encode a target, int32 [T], without eos."""
        return self.target.encode(text)

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[np.ndarray]:
        """Encode a long target that comes in pieces."""
        return self.target.encode_pieces(pieces)

    def encode_piece(self, text: str) -> np.ndarray:
        """Encode a part of a target, int32 [T], without special tokens."""
        return self.target.encode_piece(text)

    def encode_source(self, text: str, allow_special: bool = False) -> np.ndarray:
        """Encode the input of an encoder, int32 [T]: the text, then eos. Raises UserError as `encode_prompt`."""
        return self.source.encode_source(text, allow_special)

    def encode_target(self, text: str) -> np.ndarray:
        """Encode the output of a decoder, int32 [T]: the text, then eos."""
        return self.target.encode_target(text)

    def with_dropout(self, rate: float, *seed: int) -> "PairTokenizer":
        """BPE-dropout in both tokenizers, for training. Raises UserError: only `bpe` has merges."""
        return self.of(self.source.with_dropout(rate, *seed), self.target.with_dropout(rate, *seed))

    def decode(self, ids: ArrayLike) -> str:
        """Decode the ids of a target, integers [T]."""
        return self.target.decode(ids)


TOKENIZERS = {
    cls.kind: cls for cls in (CharTokenizer, ByteTokenizer, BPETokenizer, WordPieceTokenizer, UnigramTokenizer)
}


def train_tokenizer(kind: str, vocab_size: int, text: str | Iterable[str]) -> Tokenizer:
    """Train a tokenizer of `kind` on a text, or on its pieces in order.

    Raises:
      UserError: an unknown kind; as its `train` does.
    """
    return choose(TOKENIZERS, kind, "tokenizer.kind").train(text, vocab_size)


def tokenizer_from_dict(values: object) -> Tokenizer:
    """Rebuild the tokenizer that `to_dict` described. Raises UserError for an unknown kind or malformed content."""
    values = values if isinstance(values, dict) else {}
    kind = values.get("kind")
    learned = values.get("learned")
    if not isinstance(learned, list) or not all(isinstance(item, str) for item in [kind, *learned]):
        raise malformed("a string 'kind' and a list of strings 'learned'")
    if kind in FILE_TOKENIZERS:
        return FILE_TOKENIZERS[kind](tuple(learned))
    if kind == PairTokenizer.kind:
        try:
            source, target = map(json.loads, learned)
        except (ValueError, RecursionError) as error:
            raise malformed("the JSON of two tokenizers for kind 'pair'") from error
        return PairTokenizer.of(tokenizer_from_dict(source), tokenizer_from_dict(target))
    return choose(TOKENIZERS, kind, "tokenizer.kind")(tuple(learned))
