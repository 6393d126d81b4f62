"""Vocabulary files without tokenizer.json: vocab.json and merges.txt, vocab.txt, tokenizer.model."""

import dataclasses
from collections.abc import Iterator

import tokenizers as hugging_face
from tokenizers import AddedToken

from transformer_jax.errors import UserError
from transformer_jax.tokenizers.growth import MAX_PIECE
from transformer_jax.tokenizers.json_tokenizer import JsonTokenizer
from transformer_jax.tokenizers.layouts import Merges, Vocabulary, build_tokenizer
from transformer_jax.tokenizers.settings import json_object

# Of Unicode; Python's strip() removes four control characters more.
WHITESPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
CONTROL, USER_DEFINED = 3, 4  # types of pieces in SentencePiece models
BPE_MODEL = 2  # type of a SentencePiece model
_WIRE_SIZES = {1: 8, 5: 4}  # bytes of the fixed-size values of Protocol Buffers, by wire type


class BPEFilesTokenizer(JsonTokenizer):
    """vocab.json and merges.txt: byte-level BPE of GPT-2, RoBERTa and BART."""

    kind = "vocab.json"
    required_files = ("vocab.json", "merges.txt")
    classes = ("GPT2Tokenizer", "RobertaTokenizer")

    def _build(self) -> hugging_face.Tokenizer:
        ids = json_object("vocab.json", self.text_files["vocab.json"])
        merges = list(_merges(self.text_files["merges.txt"]))
        return build_tokenizer(Vocabulary(_checked_ids(ids), merges), self.settings)


class WordPieceFileTokenizer(JsonTokenizer):
    """vocab.txt: WordPiece of BERT, a token a line."""

    kind = "vocab.txt"
    required_files = ("vocab.txt",)
    classes = ("BertTokenizer",)

    def _build(self) -> hugging_face.Tokenizer:
        lines = self.text_files["vocab.txt"].removesuffix("\n").split("\n")
        ids = {line.rstrip(WHITESPACE): i for i, line in enumerate(lines)}
        unknown = self.settings.named({"unk": "[UNK]"}).get("unk")
        if unknown is None or unknown.content not in ids:
            raise UserError(
                "vocab.txt: has no unknown token, such as [UNK]. Name it in tokenizer_config.json: unk_token."
            )
        return build_tokenizer(Vocabulary(ids), self.settings)


class LlamaFileTokenizer(JsonTokenizer):
    """tokenizer.model: SentencePiece BPE of Llama, with byte tokens for characters that have no piece."""

    kind = "tokenizer.model"
    required_files = ("tokenizer.model",)
    classes = ("LlamaTokenizer",)

    def _build(self) -> hugging_face.Tokenizer:
        pieces, model_type = _read_sentencepiece(self.files["tokenizer.model"])
        if model_type != BPE_MODEL:
            raise UserError("tokenizer.model: is a SentencePiece model of another type than BPE. Add a tokenizer.json.")
        ids = {piece.text: i for i, piece in enumerate(pieces)}
        extra = tuple(
            AddedToken(piece.text, normalized=False, special=piece.type == CONTROL)
            for piece in pieces
            if piece.type in (CONTROL, USER_DEFINED)
        )
        return build_tokenizer(Vocabulary(ids, _merges_of_pieces(ids), extra=extra), self.settings)


def _checked_ids(ids: dict[str, object]) -> dict[str, int]:
    checked = {token: i for token, i in ids.items() if type(i) is int and 0 <= i < 2**31}
    if len(checked) < len(ids) or not ids:
        raise UserError("vocab.json: must map tokens to ids.")
    return checked


def _merges(text: str) -> Iterator[tuple[str, str]]:
    """The merges in a merges.txt, a line each; its first line may name a version."""
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        if line.startswith("#version"):
            continue
        parts = line.removesuffix("\r").split(" ")
        if len(parts) != 2:
            raise UserError(f"merges.txt: line {number} is {line!r:.80}, and must be two tokens with a space between.")
        yield parts[0], parts[1]


def _merges_of_pieces(ids: dict[str, int]) -> Merges:
    """The merges of a SentencePiece BPE model: every pair of pieces that are a piece together, the lowest id first."""
    merges = []
    for piece in ids:  # in the order of ids, which is that of training
        pairs = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        merges += [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
    return merges


@dataclasses.dataclass(frozen=True)
class _Piece:
    text: str
    type: int  # 1: normal; CONTROL, USER_DEFINED and others


def _read_sentencepiece(data: bytes) -> tuple[list[_Piece], int]:
    """Pieces and type of a SentencePiece model: of fields 1, and of field 3 in field 2 (sentencepiece_model.proto)."""
    pieces = []
    model_type = 1  # Unigram, the default
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            fields = dict(_fields(value))
            text = fields.get(1, b"")
            kind = fields.get(3, 1)
            pieces.append(
                _Piece(text.decode() if isinstance(text, bytes) else "", kind if isinstance(kind, int) else 1)
            )
        elif number == 2 and isinstance(value, bytes):
            found = dict(_fields(value)).get(3, model_type)
            model_type = found if isinstance(found, int) else model_type
    if not pieces or any(len(piece.text) > MAX_PIECE for piece in pieces):
        raise ValueError(f"no pieces, or one of more than {MAX_PIECE:,} characters")
    return pieces, model_type


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a Protocol Buffers message. Raises ValueError if it is cut off."""
    i = 0
    while i < len(data):
        key, i = _varint(data, i)
        wire_type = key & 7
        if wire_type == 0:
            value, i = _varint(data, i)
            yield key >> 3, value
            continue
        if wire_type == 2:
            size, i = _varint(data, i)
        elif wire_type in _WIRE_SIZES:
            size = _WIRE_SIZES[wire_type]
        else:
            raise ValueError(f"wire type {wire_type}")
        if i + size > len(data):
            raise ValueError("cut off")
        yield key >> 3, data[i : i + size]
        i += size


def _varint(data: bytes, i: int) -> tuple[int, int]:
    """The integer at index `i`, seven bits a byte, and the index after it."""
    value = 0
    for shift in range(0, 70, 7):
        if i >= len(data):
            raise ValueError("cut off")
        byte = data[i]
        i += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, i
    raise ValueError("an integer of more than 64 bits")
