"""SentencePiece tokenizers of pre-trained models: T5 (one model) and Marian (a model for each language)."""

import dataclasses
import json
import re
from typing import TYPE_CHECKING

import numpy as np

from transformer_jax.errors import UserError
from transformer_jax.tokenizers.files import FileTokenizer

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor


class SentencePieceTokenizer(FileTokenizer):
    """SentencePiece model of T5, spiece.model: eos ends a text.

    The sentinels "<extra_id_0>", "<extra_id_1>", ... have the ids after the pieces, counted down from the last.
    """

    kind = "sentencepiece"
    required_files = ("spiece.model",)
    _library: "SentencePieceProcessor"

    def _load(self) -> "SentencePieceProcessor":
        return _sentencepiece(self.files["spiece.model"])

    @property
    def _num_sentinels(self) -> int:
        return int(self._saved["ids"].get("extra", 0))

    @property
    def vocab_size(self) -> int:
        """Number of ids, sentinels included."""
        return self._library.vocab_size() + self._num_sentinels

    def pieces(self) -> list[str | None]:
        """The piece of each id as the vocabulary spells it, None for control, unknown and unused ids and sentinels."""
        model = self._library
        is_text = [
            not (model.is_control(i) or model.is_unknown(i) or model.is_unused(i)) for i in range(model.vocab_size())
        ]
        pieces = [model.id_to_piece(i) if is_text[i] else None for i in range(model.vocab_size())]
        return [*pieces, *[None] * self._num_sentinels]

    def _encode(self, text: str, allow_special: bool) -> list[int]:
        return [*self._encode_piece(text, allow_special), *self._find_ends()[1]]

    def _find_ends(self) -> tuple[list[int], list[int]]:
        eos_id = self._library.eos_id()
        return [], [eos_id] if eos_id >= 0 else []

    def _encode_piece(self, text: str, allow_special: bool) -> list[int]:
        ids: list[int] = []
        for piece in re.split(r"(<extra_id_\d{1,4}>|</s>)", text) if allow_special else [text]:
            sentinel = re.fullmatch(r"<extra_id_(\d+)>", piece) if allow_special else None
            if sentinel and int(sentinel[1]) < self._num_sentinels:
                ids.append(self.vocab_size - 1 - int(sentinel[1]))
            elif allow_special and piece == "</s>":
                ids.append(self._library.eos_id())
            else:
                ids += self._library.encode(piece)
        return ids

    def token_name(self, i: int) -> str:
        """The token of an id, as the vocabulary spells it."""
        sentinel = self.vocab_size - 1 - i
        return f"<extra_id_{sentinel}>" if sentinel < self._num_sentinels else self._library.id_to_piece(i)

    def _decode(self, ids: list[int]) -> str:
        special = {self._library.eos_id(), self._library.pad_id(), self._library.unk_id()}
        return self._library.decode([i for i in ids if i < self._library.vocab_size() and i not in special])


@dataclasses.dataclass(frozen=True)
class _MarianFiles:
    """Marian's files, loaded: two SentencePiece models, and the ids of pieces and pieces of ids."""

    source: "SentencePieceProcessor"
    target: "SentencePieceProcessor"
    source_ids: dict[str, int]
    target_ids: dict[str, int]
    target_pieces: dict[int, str]


class MarianTokenizer(FileTokenizer):
    """Marian's tokenizer: source.spm encodes, target.spm decodes, vocab.json holds the ids of both.

    A text may begin with the code of the target language, ">>deu<< ", if the model knows it.
    """

    kind = "marian"
    required_files = ("source.spm", "target.spm", "vocab.json")
    _library: _MarianFiles

    def _load(self) -> _MarianFiles:
        files = self.files
        source = _sentencepiece(files["source.spm"])
        target = _sentencepiece(files["target.spm"])
        ids = json.loads(files["vocab.json"])
        target_ids = json.loads(files["target_vocab.json"]) if "target_vocab.json" in files else ids
        for name, vocabulary in (("vocab.json", ids), ("target_vocab.json", target_ids)):
            if not vocabulary or not all(type(i) is int and 0 <= i < 2**31 for i in vocabulary.values()):
                raise UserError(f"{name}: must map pieces to ids.")
        if not {"</s>", "<unk>"} <= ids.keys():
            raise UserError("vocab.json: must have ids for </s> and <unk>.")
        target_pieces = {i: piece for piece, i in target_ids.items()}
        # Of several pieces with one id, the last counts in both directions.
        return _MarianFiles(source, target, ids, {piece: i for i, piece in target_pieces.items()}, target_pieces)

    @property
    def vocab_size(self) -> int:
        """Number of ids of the target."""
        return max(self._library.target_pieces) + 1

    def _encode(self, text: str, allow_special: bool) -> list[int]:
        ids = self._library.source_ids
        pieces: list[str] = []
        code = re.match(r">>.+?<<", text)
        if code and code[0] in ids:
            pieces.append(code[0])
            text = text[code.end() :]
        for i, part in enumerate(re.split("(</s>|<pad>|<unk>)", text) if allow_special else [text]):
            is_special = i % 2 == 1 and part in ids
            pieces += [part] if is_special else self._library.source.encode(part, out_type=str)
        return [ids.get(piece, ids["<unk>"]) for piece in [*pieces, "</s>"]]

    def _encode_piece(self, text: str, allow_special: bool) -> list[int]:
        """Ids of a piece of a target: forbidden words and the like are of the text that is generated."""
        ids = self._library.target_ids
        return [ids.get(piece, ids["<unk>"]) for piece in self._library.target.encode(text, out_type=str)]

    def _find_ends(self) -> tuple[list[int], list[int]]:
        return [], [self._library.source_ids["</s>"]]

    def encode_target(self, text: str) -> np.ndarray:
        """Encode a text of the target language, int32 [T], then eos."""
        return self._checked_ids(text, lambda: [*self._encode_piece(text, False), self._library.target_ids["</s>"]])

    def token_name(self, i: int) -> str:
        """The token of an id, as the vocabulary of the source or else of the target spells it."""
        names = {number: piece for piece, number in self._library.source_ids.items()}
        return names.get(i) or self._library.target_pieces.get(i, "")

    def _decode(self, ids: list[int]) -> str:
        pieces = [self._library.target_pieces[i] for i in ids if i in self._library.target_pieces]
        text = self._library.target.decode([piece for piece in pieces if piece not in ("</s>", "<pad>", "<unk>")])
        return text.replace("\u2581", " ").strip()  # the mark at a word's start, left in pieces of the source alone


def _sentencepiece(model: bytes) -> "SentencePieceProcessor":
    from sentencepiece import SentencePieceProcessor  # not at import: few models need it

    if not model:  # which the library would take for no model given, and fail at the first use
        raise ValueError("an empty file")
    return SentencePieceProcessor(model_proto=model)
