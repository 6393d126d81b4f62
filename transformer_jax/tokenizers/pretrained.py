"""Tokenizers read from the files of a pre-trained model: tokenizer.json, or SentencePiece models.

`encode` adds the special tokens that the model expects. Something that looks like a special token inside a text, such
as "</s>", is encoded as text unless `allow_special=True`: untrusted text must not be able to end a prompt.
"""

import base64
import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers as hugging_face

from transformer_jax.errors import UserError
from transformer_jax.tokenizers.base import Tokenizer, no_id

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

BINARY_SUFFIXES = (".model", ".spm")  # stored as base64 in JSON


@dataclasses.dataclass(frozen=True)
class FileTokenizer(Tokenizer):
    """Base class of tokenizers made of files. `learned` is the JSON of special ids and of file contents by name.

    Raises:
      UserError: a file that is not sound.
    """

    _library: Any = dataclasses.field(init=False, repr=False, compare=False)  # the files, as the library loads them

    def __post_init__(self) -> None:
        with self._library_errors("not of kind"):
            object.__setattr__(self, "_library", self._load())

    def _load(self) -> Any:
        """Load the files with their library, which finds malformed ones."""
        raise NotImplementedError

    def _encode(self, text: str, allow_special: bool) -> list[int]:
        """Token ids of a text with the special tokens around it."""
        raise NotImplementedError

    def _decode(self, ids: list[int]) -> str:
        """The text of any ids of at least 0, special tokens skipped."""
        raise NotImplementedError

    @contextlib.contextmanager
    def _library_errors(self, problem: str) -> Iterator[None]:
        """Turn the libraries' errors into a UserError: bare Exception, RuntimeError, KeyError, panics of Rust."""
        try:
            yield
        except UserError:
            raise
        except BaseException as error:
            # A panic of Rust is no Exception; everything else that is none, such as KeyboardInterrupt, passes.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            reason = ascii(str(error))[1:-1][:200]  # one line without control characters
            names = ", ".join(FILE_TOKENIZERS[self.kind][1])
            raise UserError(f"tokenizer files {names}: {problem} {self.kind!r} ({reason}).") from error

    @functools.cached_property
    def _saved(self) -> dict[str, Any]:
        return json.loads(self.learned[0])

    @property
    def files(self) -> dict[str, bytes]:
        """The original files, contents by name."""
        return {
            name: base64.b64decode(text) if name.endswith(BINARY_SUFFIXES) else text.encode()
            for name, text in self._saved["files"].items()
        }

    @property
    def pad_id(self) -> int:
        """Id of padding; 0 if the model names none."""
        return self._saved["ids"].get("pad", 0)

    @property
    def bos_id(self) -> int:
        """Id of the token at the beginning of a text; -1 if the model names none."""
        return self._saved["ids"].get("bos", -1)

    @property
    def eos_id(self) -> int:
        """Id of the token at the end of a text; -1 if the model names none."""
        return self._saved["ids"].get("eos", -1)

    def encode(self, text: str, allow_special: bool = False) -> np.ndarray:
        """Encode a text, int32 [T], with the special tokens that the model expects around it.

        Args:
          allow_special: special tokens inside the text become their ids. Never for untrusted text.
        """
        return self._checked_ids(text, lambda: self._encode(text, allow_special))

    def _checked_ids(self, text: str, encode: Callable[[], list[int]]) -> np.ndarray:
        if lone_surrogate := re.search(r"[\ud800-\udfff]", text):
            raise no_id(self.kind, text, lone_surrogate.start(), "byte")
        with self._library_errors("no ids by"):
            return np.array(encode(), np.int32)

    def encode_whole(self, text: str) -> np.ndarray:
        """Encode a complete text, int32 [T]: the same as `encode`, which adds special tokens already."""
        return self.encode(text)

    def encode_source(self, text: str) -> np.ndarray:
        """Encode the input of an encoder, int32 [T]: the same as `encode`."""
        return self.encode(text)

    def encode_target(self, text: str) -> np.ndarray:
        """Encode the output of a decoder, int32 [T]: the same as `encode`."""
        return self.encode(text)

    @property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """The special tokens that `encode` adds before and after a text."""
        special = self.encode("")
        # A text goes before the last of the special tokens; a single one follows the text.
        return special[:-1] if len(special) > 1 else special[:0], special[-1:]

    def encode_piece(self, text: str) -> np.ndarray:
        """Encode a part of a text, int32 [T], without special tokens."""
        first, last = self.ends
        ids = self.encode(text)
        return ids[len(first) : len(ids) - len(last)]

    def decode(self, ids: Any) -> str:
        """Decode integers [T] to a text, special tokens skipped. Raises UserError for a negative id."""
        ids = np.asarray(ids)
        if ids.size and (ids.ndim != 1 or ids.dtype.kind not in "iu" or ids.min() < 0):
            raise UserError("ids: must be integers [T] of at least 0. Decode row by row.")
        with self._library_errors("no text by"):
            return self._decode([int(i) for i in ids])


SPECIAL_TOKENS = {
    "pad": ("<pad>", "[PAD]"),
    "bos": ("<s>", "<bos>", "[CLS]", "<|endoftext|>"),
    "eos": ("</s>", "<eos>", "[SEP]", "<|endoftext|>"),
    "mask": ("[MASK]", "<mask>"),
}


class JsonTokenizer(FileTokenizer):
    """tokenizer.json of Hugging Face's fast tokenizers.

    If the model's own configuration does not name the special tokens, they are found by their common names.
    """

    kind = "tokenizer.json"
    _library: hugging_face.Tokenizer

    def _load(self) -> hugging_face.Tokenizer:
        tokenizer = hugging_face.Tokenizer.from_str(self._saved["files"]["tokenizer.json"])
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def _special_id(self, name: str, default: int) -> int:
        if name in self._saved["ids"]:
            return self._saved["ids"][name]
        return self._common_id(name, default)

    def _common_id(self, name: str, default: int) -> int:
        ids = (self._library.token_to_id(token) for token in SPECIAL_TOKENS[name])
        return next((i for i in ids if i is not None), default)

    @property
    def pad_id(self) -> int:
        """Id of padding; 0 if there is none."""
        return self._special_id("pad", 0)

    @property
    def bos_id(self) -> int:
        """Id of the token at the beginning of a text; -1 if there is none."""
        return self._special_id("bos", -1)

    @property
    def eos_id(self) -> int:
        """Id of the token at the end of a text; -1 if there is none."""
        return self._special_id("eos", -1)

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._library.get_vocab_size(with_added_tokens=True)

    @property
    def mask_id(self) -> int:
        """Id of the mask token, or the first id that no text has."""
        return self._common_id("mask", self.vocab_size)

    def pieces(self) -> list[str | None]:
        """The piece of each id as the vocabulary spells it, None for an unused id."""
        return [self._library.id_to_token(i) for i in range(self.vocab_size)]

    def settings(self) -> dict[str, Any]:
        """The contents of tokenizer.json, as the library reads them: decoder, added_tokens, and so on."""
        return json.loads(self._library.to_str())

    def _encode(self, text: str, allow_special: bool) -> list[int]:
        self._library.encode_special_tokens = not allow_special
        return self._library.encode(text).ids

    def _decode(self, ids: list[int]) -> str:
        return self._library.decode(ids, skip_special_tokens=True)


class SentencePieceTokenizer(FileTokenizer):
    """SentencePiece model of T5, spiece.model: eos ends a text.

    The sentinels "<extra_id_0>", "<extra_id_1>", ... have the ids after the pieces, counted down from the last.
    """

    kind = "sentencepiece"
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
        ids: list[int] = []
        for piece in re.split(r"(<extra_id_\d{1,4}>|</s>)", text) if allow_special else [text]:
            sentinel = re.fullmatch(r"<extra_id_(\d+)>", piece) if allow_special else None
            if sentinel and int(sentinel[1]) < self._num_sentinels:
                ids.append(self.vocab_size - 1 - int(sentinel[1]))
            elif allow_special and piece == "</s>":
                ids.append(self._library.eos_id())
            else:
                ids += self._library.encode(piece)
        return [*ids, self._library.eos_id()]

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
        for part in re.split("(</s>|<pad>|<unk>)", text) if allow_special else [text]:
            is_special = allow_special and part in ids
            pieces += [part] if is_special else self._library.source.encode(part, out_type=str)
        return [ids.get(piece, ids["<unk>"]) for piece in [*pieces, "</s>"]]

    def encode_target(self, text: str) -> np.ndarray:
        """Encode a text of the target language, int32 [T], then eos."""

        def encode() -> list[int]:
            ids = self._library.target_ids
            pieces = self._library.target.encode(text, out_type=str)
            return [ids.get(piece, ids["<unk>"]) for piece in [*pieces, "</s>"]]

        return self._checked_ids(text, encode)

    def _decode(self, ids: list[int]) -> str:
        pieces = [self._library.target_pieces[i] for i in ids if i in self._library.target_pieces]
        text = self._library.target.decode([piece for piece in pieces if piece not in ("</s>", "<pad>", "<unk>")])
        return text.replace("\u2581", " ").strip()  # the mark at a word's start, left in pieces of the source alone


def _sentencepiece(model: bytes) -> "SentencePieceProcessor":
    from sentencepiece import SentencePieceProcessor  # not at import: few models need it

    if not model:  # which the library would take for no model given, and fail at the first use
        raise ValueError("an empty file")
    return SentencePieceProcessor(model_proto=model)


def _check_num_sentinels(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 10_000:  # their names have at most four digits
        raise UserError(f"tokenizer_config.json: extra_ids={number!r:.80}: must be an integer from 0 to 9,999.")
    return number


FILE_TOKENIZERS: dict[str, tuple[type[FileTokenizer], tuple[str, ...]]] = {
    "tokenizer.json": (JsonTokenizer, ("tokenizer.json",)),
    "sentencepiece": (SentencePieceTokenizer, ("spiece.model",)),
    "marian": (MarianTokenizer, ("source.spm", "target.spm", "vocab.json")),
}
OTHER_FILES = ("vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "sentencepiece.bpe.model", "source.spm")
SETTINGS_FILES = ("target_vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def read_tokenizer(
    has: Callable[[str], bool], data: Callable[[str], bytes], ids: dict[str, int]
) -> FileTokenizer | None:
    """Read the tokenizer of a folder; None if there is none of a supported kind.

    Args:
      has: tells whether the folder has a file of that name.
      data: reads the bytes of a file.
      ids: the special ids that the model's configuration names: "pad", "bos" and "eos".

    Raises:
      UserError: malformed files.
    """
    for cls, names in FILE_TOKENIZERS.values():
        if not all(has(name) for name in names):
            continue
        contents = {name: data(name) for name in (*names, *SETTINGS_FILES) if has(name)}
        try:
            texts = {
                name: base64.b64encode(content).decode() if name.endswith(BINARY_SUFFIXES) else content.decode()
                for name, content in contents.items()
            }
            if cls is SentencePieceTokenizer:
                settings = json.loads(texts.get("tokenizer_config.json", "{}"))
                ids = ids | {"extra": _check_num_sentinels(settings.get("extra_ids", 100))}
        except UserError:
            raise
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"tokenizer files {', '.join(contents)}: not readable ({error}).") from error
        return cls((json.dumps({"ids": ids, "files": texts}),))
    return None


def missing_tokenizer(folder: str) -> UserError:
    """Return the error for a run or folder without a supported tokenizer, which names the other tokenizer files."""
    others = [name for name in OTHER_FILES if folder and (Path(folder).expanduser() / name).is_file()]
    has = f"has {', '.join(others)}, " if others else ""
    return UserError(
        f"run: no supported tokenizer found in {folder or 'this run'} ({has}needs tokenizer.json or spiece.model). "
        "Add one, or pass token ids to tj.logits."
    )
