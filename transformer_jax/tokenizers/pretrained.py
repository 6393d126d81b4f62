"""Tokenizers that come with a pre-trained model, as files: tokenizer.json, or SentencePiece models.

They put special tokens around a text as their models want it. What looks like a special token inside a text, say
"</s>", is text, unless `allow_special=True`: a text of a stranger's must not end a prompt.
"""

import base64
import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import sentencepiece
import tokenizers as hugging_face

from transformer_jax.errors import UserError
from transformer_jax.tokenizers.base import Tokenizer, no_id

BINARY = (".model", ".spm")  # kept as base64 in JSON


@dataclasses.dataclass(frozen=True)
class FileTokenizer(Tokenizer):
    """A tokenizer made of files. What it `learned` is the JSON of its ids and of its files by name.

    Raises:
      UserError: a file that is no such tokenizer.
    """

    def __post_init__(self):
        with self._asking_library("not of kind"):
            _ = self._parts  # read, so that a malformed file is found now

    @contextlib.contextmanager
    def _asking_library(self, problem: str) -> Iterator[None]:
        """The libraries raise bare Exception, RuntimeError, KeyError and more for files that are not sound."""
        try:
            yield
        except UserError:
            raise
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # Rust's is no Exception
                raise
            reason = ascii(str(error))[1:-1][:200]  # one line, with nothing that a terminal obeys
            names = ", ".join(FILE_TOKENIZERS[self.kind][1])
            raise UserError(f"tokenizer files {names}: {problem} {self.kind!r} ({reason}).") from error

    @functools.cached_property
    def _saved(self) -> dict[str, Any]:
        return json.loads(self.learned[0])

    @property
    def files(self) -> dict[str, bytes]:
        """The files by name, as they were."""
        return {
            name: base64.b64decode(text) if name.endswith(BINARY) else text.encode()
            for name, text in self._saved["files"].items()
        }

    @property
    def pad_id(self) -> int:
        return self._saved["ids"].get("pad", 0)

    @property
    def bos_id(self) -> int:
        return self._saved["ids"].get("bos", -1)

    @property
    def eos_id(self) -> int:
        return self._saved["ids"].get("eos", -1)

    def encode(self, text: str, allow_special: bool = False) -> np.ndarray:
        """Token ids, int32 [T], with the special tokens that the model wants around a text."""
        return self._ids(text, lambda: self._encode(text, allow_special))

    def _ids(self, text: str, encode: Callable[[], list[int]]) -> np.ndarray:
        if lone_surrogate := re.search(r"[\ud800-\udfff]", text):
            raise no_id(self.kind, text, lone_surrogate.start(), "byte")
        with self._asking_library("no ids by"):
            return np.array(encode(), np.int32)

    def encode_whole(self, text: str) -> np.ndarray:
        """Token ids of a text that stands alone: as `encode`, which puts special tokens around it already."""
        return self.encode(text)

    encode_source = encode_target = encode_whole

    @property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that `encode` puts before and after a text."""
        around = self.encode("")
        # What it puts around nothing is cut where a text would stand: before the last token, if there are any.
        return around[:-1] if len(around) > 1 else around[:0], around[-1:]

    def encode_piece(self, text: str) -> np.ndarray:
        """Token ids of a part of a text, int32 [T], without the tokens around a whole one."""
        first, last = self.ends
        whole = self.encode(text)
        return whole[len(first) : len(whole) - len(last)]

    def decode(self, ids: Any) -> str:
        """The text of integers [T], special tokens left out. Raises UserError for a negative id."""
        ids = np.asarray(ids)
        if ids.size and (ids.ndim != 1 or ids.dtype.kind not in "iu" or ids.min() < 0):
            raise UserError("ids: must be integers [T] of at least 0. Decode row by row.")
        with self._asking_library("no text by"):
            return self._decode([int(i) for i in ids])


USUAL_NAMES = {
    "pad": ("<pad>", "[PAD]"),
    "bos": ("<s>", "<bos>", "[CLS]", "<|endoftext|>"),
    "eos": ("</s>", "<eos>", "[SEP]", "<|endoftext|>"),
}


class JsonTokenizer(FileTokenizer):
    """tokenizer.json, for the library that Hugging Face's fast tokenizers are made with.

    Without a model beside it that says so, the special tokens are those that have their usual names.
    """

    kind = "tokenizer.json"

    def _special(self, name: str, missing: int) -> int:
        if name in self._saved["ids"]:
            return self._saved["ids"][name]
        known = (self._parts.token_to_id(token) for token in USUAL_NAMES[name])
        return next((i for i in known if i is not None), missing)

    @property
    def pad_id(self) -> int:
        return self._special("pad", 0)

    @property
    def bos_id(self) -> int:
        return self._special("bos", -1)

    @property
    def eos_id(self) -> int:
        return self._special("eos", -1)

    @functools.cached_property
    def _parts(self) -> hugging_face.Tokenizer:
        tokenizer = hugging_face.Tokenizer.from_str(self._saved["files"]["tokenizer.json"])
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    @property
    def vocab_size(self) -> int:
        return self._parts.get_vocab_size(with_added_tokens=True)

    @property
    def mask_id(self) -> int:
        known = (self._parts.token_to_id(token) for token in ("[MASK]", "<mask>"))
        return next((i for i in known if i is not None), self.vocab_size)

    def _encode(self, text: str, allow_special: bool) -> list[int]:
        self._parts.encode_special_tokens = not allow_special
        return self._parts.encode(text).ids

    def _decode(self, ids: list[int]) -> str:
        return self._parts.decode(ids, skip_special_tokens=True)


class SentencePieceTokenizer(FileTokenizer):
    """spiece.model, as T5 has it: pieces, then the end; after the pieces, counted down, T5's "<extra_id_0>" and on."""

    kind = "sentencepiece"

    @functools.cached_property
    def _parts(self) -> sentencepiece.SentencePieceProcessor:
        return _sentencepiece(self.files["spiece.model"])

    @property
    def _num_extra(self) -> int:
        return int(self._saved["ids"].get("extra", 0))

    @property
    def vocab_size(self) -> int:
        return self._parts.vocab_size() + self._num_extra

    def _encode(self, text: str, allow_special: bool) -> list[int]:
        ids = []
        for piece in re.split(r"(<extra_id_\d{1,4}>|</s>)", text) if allow_special else [text]:
            extra = re.fullmatch(r"<extra_id_(\d+)>", piece) if allow_special else None
            if extra and int(extra[1]) < self._num_extra:
                ids.append(self.vocab_size - 1 - int(extra[1]))
            elif allow_special and piece == "</s>":
                ids.append(self._parts.eos_id())
            else:
                ids += self._parts.encode(piece)
        return [*ids, self._parts.eos_id()]

    def _decode(self, ids: list[int]) -> str:
        special = {self._parts.eos_id(), self._parts.pad_id(), self._parts.unk_id()}
        return self._parts.decode([i for i in ids if i < self._parts.vocab_size() and i not in special])


class MarianTokenizer(FileTokenizer):
    """source.spm cuts a text into pieces, target.spm puts pieces together, vocab.json has the ids of both.

    A text may begin with the code of the language to translate to, ">>deu<< ", where the model knows it.
    """

    kind = "marian"

    @functools.cached_property
    def _parts(self) -> tuple[Any, Any, dict[str, int], dict[int, str]]:
        files = self.files
        source, target = (_sentencepiece(files[f"{side}.spm"]) for side in ("source", "target"))
        ids = json.loads(files["vocab.json"])
        of_target = json.loads(files["target_vocab.json"]) if "target_vocab.json" in files else ids
        for name, vocabulary in (("vocab.json", ids), ("target_vocab.json", of_target)):
            if not vocabulary or not all(type(i) is int and 0 <= i < 2**31 for i in vocabulary.values()):
                raise UserError(f"{name}: must map pieces to ids.")
        if not {"</s>", "<unk>"} <= ids.keys():
            raise UserError("vocab.json: must have ids for </s> and <unk>.")
        return source, target, ids, {i: piece for piece, i in of_target.items()}

    @property
    def vocab_size(self) -> int:
        return max(self._parts[3]) + 1

    def _encode(self, text: str, allow_special: bool) -> list[int]:
        source, _, ids, _ = self._parts
        code = re.match(r">>.+?<<", text)
        pieces = [code[0]] if code and code[0] in ids else []
        rest = text[code.end() :] if pieces else text
        for part in re.split("(</s>|<pad>|<unk>)", rest) if allow_special else [rest]:
            pieces += [part] if allow_special and part in ids else source.encode(part, out_type=str)
        return [ids.get(piece, ids["<unk>"]) for piece in [*pieces, "</s>"]]

    def encode_target(self, text: str) -> np.ndarray:
        """Token ids of a text of the other language, int32 [T], and the end."""
        _, target, _, pieces = self._parts
        ids = {piece: i for i, piece in pieces.items()}
        return self._ids(
            text, lambda: [ids.get(piece, ids["<unk>"]) for piece in [*target.encode(text, out_type=str), "</s>"]]
        )

    def _decode(self, ids: list[int]) -> str:
        _, target, _, pieces = self._parts
        known = [pieces[i] for i in ids if i in pieces]
        text = target.decode([piece for piece in known if piece not in ("</s>", "<pad>", "<unk>")])
        return text.replace("\u2581", " ").strip()  # the mark of a word's begin, of pieces that only the source has


def _sentencepiece(model: bytes) -> sentencepiece.SentencePieceProcessor:
    if not model:  # which the library takes for none given, and fails later
        raise ValueError("an empty file")
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def _num_extra(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 10_000:  # their names have four digits at most
        raise UserError(f"tokenizer_config.json: extra_ids={number!r:.80}: must be an integer from 0 to 9,999.")
    return number


FILE_TOKENIZERS = {
    "tokenizer.json": (JsonTokenizer, ("tokenizer.json",)),
    "sentencepiece": (SentencePieceTokenizer, ("spiece.model",)),
    "marian": (MarianTokenizer, ("source.spm", "target.spm", "vocab.json")),
}
SETTINGS = ("target_vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def read_tokenizer(has: Callable[[str], bool], data: Callable[[str], bytes], ids: dict[str, int]) -> Tokenizer | None:
    """The tokenizer of a folder, by its files; None where there is none of a known kind.

    Args:
      has, data: whether a file is in the folder, and its bytes.
      ids: "pad", "bos" and "eos", those that there are.
    """
    for cls, names in FILE_TOKENIZERS.values():
        if not all(has(name) for name in names):
            continue
        contents = {name: data(name) for name in (*names, *SETTINGS) if has(name)}
        try:
            texts = {
                name: base64.b64encode(content).decode() if name.endswith(BINARY) else content.decode()
                for name, content in contents.items()
            }
            if cls is SentencePieceTokenizer:
                settings = json.loads(texts.get("tokenizer_config.json", "{}"))
                ids = ids | {"extra": _num_extra(settings.get("extra_ids", 100))}
        except UserError:
            raise
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"tokenizer files {', '.join(contents)}: not readable ({error}).") from error
        return cls((json.dumps({"ids": ids, "files": texts}),))
    return None
