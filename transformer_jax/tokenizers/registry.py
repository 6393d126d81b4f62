"""Tokenizer registry: train one by kind, rebuild one from its dict."""

import functools
import json
from typing import Any

import numpy as np

from transformer_jax.errors import choose
from transformer_jax.tokenizers.base import ByteTokenizer, CharTokenizer, Tokenizer, malformed
from transformer_jax.tokenizers.pretrained import FILE_TOKENIZERS
from transformer_jax.tokenizers.subwords import BPETokenizer, UnigramTokenizer, WordPieceTokenizer


class PairTokenizer(Tokenizer):
    """One tokenizer for what an encoder reads, another for what a decoder writes; ids and texts are the latter's."""

    kind = "pair"

    @classmethod
    def of(cls, source: Tokenizer, target: Tokenizer) -> "PairTokenizer":
        """Of two tokenizers. What it `learned` is the JSON of both."""
        return cls(tuple(json.dumps(side.to_dict()) for side in (source, target)))

    @functools.cached_property
    def source(self) -> Tokenizer:
        """The tokenizer of what an encoder reads."""
        return tokenizer_from_dict(json.loads(self.learned[0]))

    @functools.cached_property
    def target(self) -> Tokenizer:
        """That of what a decoder writes."""
        return tokenizer_from_dict(json.loads(self.learned[1]))

    @property
    def vocab_size(self) -> int:
        return self.target.vocab_size

    def encode(self, text: str) -> np.ndarray:
        """Token ids of a target, int32 [T], without its end."""
        return self.target.encode(text)

    def encode_source(self, text: str) -> np.ndarray:
        """Token ids of what an encoder reads, int32 [T]: the text, and the end."""
        return self.source.encode_source(text)

    def encode_target(self, text: str) -> np.ndarray:
        """Token ids that a decoder writes, int32 [T]: the text, and the end."""
        return self.target.encode_target(text)

    def dropping(self, rate: float, *seed: int) -> "PairTokenizer":
        """Both sides leave out merges by chance, for training. Raises UserError: only `bpe` has merges."""
        pair = PairTokenizer(self.learned)
        vars(pair).update(source=self.source.dropping(rate, *seed), target=self.target.dropping(rate, *seed))
        return pair

    def decode(self, ids: Any) -> str:
        """The text of a target, of integers [T]."""
        return self.target.decode(ids)


TOKENIZERS = {
    cls.kind: cls for cls in (CharTokenizer, ByteTokenizer, BPETokenizer, WordPieceTokenizer, UnigramTokenizer)
}


def train_tokenizer(kind: str, vocab_size: int, text: str) -> Tokenizer:
    """A new tokenizer for `text`. Raises UserError for an unknown kind and for what its `train` refuses."""
    return choose(TOKENIZERS, kind, "tokenizer.kind").train(text, vocab_size)


def tokenizer_from_dict(values: Any) -> Tokenizer:
    """The tokenizer that `to_dict` described. Raises UserError for an unknown kind or malformed content."""
    kind, learned = (values.get("kind"), values.get("learned")) if isinstance(values, dict) else (None, None)
    if not isinstance(learned, list) or not all(isinstance(item, str) for item in [kind, *learned]):
        raise malformed("a string 'kind' and a list of strings 'learned'")
    if kind in FILE_TOKENIZERS:
        return FILE_TOKENIZERS[kind][0](tuple(learned))
    if kind == PairTokenizer.kind:
        try:
            source, target = map(json.loads, learned)
        except (ValueError, RecursionError) as error:
            raise malformed("the JSON of two tokenizers for kind 'pair'") from error
        return PairTokenizer.of(tokenizer_from_dict(source), tokenizer_from_dict(target))
    return choose(TOKENIZERS, kind, "tokenizer.kind")(tuple(learned))
