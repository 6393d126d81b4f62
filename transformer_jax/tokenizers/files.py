"""Base class of tokenizers that are read from files: special ids, errors of the libraries, storage as JSON."""

import base64
import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from transformer_jax.errors import UserError
from transformer_jax.files import check_file_name
from transformer_jax.tokenizers.base import Tokenizer, malformed, no_id
from transformer_jax.tokenizers.settings import CONFIG, TokenizerSettings

BINARY_SUFFIXES = (".model", ".spm")  # stored as base64 in JSON
TEMPLATE_FILE = "chat_template.jinja"  # overrides chat_template of tokenizer_config.json
SETTINGS_FILES = (
    *("target_vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    TEMPLATE_FILE,
)
WORD_SEPARATOR = "word_separator"  # field of tokenizer_config.json, ours: "" where a tagger tags characters
# Spaces that clean_up_tokenization_spaces removes, in this order.
_UNWANTED_SPACES = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


def clean_up(text: str) -> str:
    """Remove the spaces that tokens apart leave before punctuation and in English contractions."""
    for end in _UNWANTED_SPACES:
        text = text.replace(end, end.strip())
    return text


@dataclasses.dataclass(frozen=True)
class FileTokenizer(Tokenizer):
    """Base class of tokenizers made of files. `learned` is the JSON of special ids and of file contents by name.

    Raises:
      UserError: a file that is not sound.
    """

    _library: Any = dataclasses.field(init=False, repr=False, compare=False)  # the files, as the library loads them
    required_files: ClassVar[tuple[str, ...]] = ()
    classes: ClassVar[tuple[str, ...]] = ()  # tokenizer classes that such files are read for; (): any
    default_class: ClassVar[str] = ""  # written to tokenizer_config.json where no class was named

    def __post_init__(self) -> None:
        self._check_saved()
        with self._library_errors("not of kind"):
            object.__setattr__(self, "_library", self._load())

    def _check_saved(self) -> None:
        """Check the JSON of a checkpoint: only files of known names are ever written to a folder."""
        try:
            saved = self._saved
            ids, files = saved["ids"].items(), saved["files"].items()
            class_name = saved["class"]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise malformed("the JSON of 'ids' and 'files'") from error
        if not all(type(number) is int and abs(number) < 2**31 for _, number in ids):
            raise malformed("special ids that are numbers below 2**31")
        if not isinstance(class_name, str):
            raise malformed("the name of a class")
        for name, text in files:
            check_file_name(name, (*self.required_files, *SETTINGS_FILES), "saved tokenizer")
            if not isinstance(text, str):
                raise malformed("the contents of its files as strings")
        if missing := [name for name in self.required_files if name not in saved["files"]]:
            raise malformed(f"its file {missing[0]}")

    def _load(self) -> Any:
        """Load the files with their library, which finds malformed ones."""
        raise NotImplementedError

    def _encode(self, text: str, allow_special: bool) -> list[int]:
        """Token ids of a text with the special tokens around it."""
        raise NotImplementedError

    def _encode_piece(self, text: str, allow_special: bool) -> list[int]:
        """Token ids of a text without the special tokens around it."""
        raise NotImplementedError

    def _find_ends(self) -> tuple[list[int], list[int]]:
        """Ids of the special tokens that `_encode` puts before and after a text."""
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
            names = ", ".join(self.required_files)
            raise UserError(f"tokenizer files {names}: {problem} {self.kind!r} ({reason}).") from error

    @functools.cached_property
    def _saved(self) -> dict:
        return json.loads(self.learned[0])

    @property
    def text_files(self) -> dict[str, str]:
        """Contents of the files by name; of binary files, in base64."""
        return self._saved["files"]

    def changed(self, ids: Mapping[str, int], files: Mapping[str, str]) -> Self:
        """This tokenizer with other special ids, by "pad", "bos" and "eos", and other contents of text files."""
        saved = self._saved | {"ids": self._saved["ids"] | ids, "files": self._saved["files"] | files}
        return type(self)((json.dumps(saved),))

    @property
    def files(self) -> dict[str, bytes]:
        """The original files, contents by name; tokenizer_config.json names the class, which other folders imply."""
        files = {
            name: base64.b64decode(text) if name.endswith(BINARY_SUFFIXES) else text.encode()
            for name, text in self._saved["files"].items()
        }
        if "tokenizer_class" not in self.settings.config and (name := self.settings.name or self.default_class):
            config = {**self.settings.config, "tokenizer_class": name}
            files[CONFIG] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
        return files

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

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[np.ndarray]:
        """Encode a text that comes in pieces as a whole: nobody knows where such a tokenizer would let it be cut."""
        yield self.encode("".join(pieces))

    def encode_whole(self, text: str) -> np.ndarray:
        """Encode a complete text, int32 [T]: the same as `encode`, which adds special tokens already."""
        return self.encode(text)

    def encode_source(self, text: str, allow_special: bool = False) -> np.ndarray:
        """Encode the input of an encoder, int32 [T]: the same as `encode`."""
        return self.encode(text, allow_special)

    def encode_target(self, text: str) -> np.ndarray:
        """Encode the output of a decoder, int32 [T]: the same as `encode`."""
        return self.encode(text)

    @property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """The special tokens that `encode` adds before and after a text, int32 each; a model may have only one end."""
        return self._ends

    @functools.cached_property
    def _ends(self) -> tuple[np.ndarray, np.ndarray]:
        with self._library_errors("no special tokens by"):
            first, last = self._find_ends()
        return np.array(first, np.int32), np.array(last, np.int32)

    def encode_prompt(self, text: str, allow_special: bool = False) -> np.ndarray:
        """Encode the beginning of a text that will be continued, int32 [T]: special tokens before it, none after it.

        Args:
          allow_special: special tokens inside the text become their ids. Never for untrusted text.
        """
        ids = self.encode(text, allow_special)
        return ids[: len(ids) - len(self.ends[1])]

    def encode_piece(self, text: str) -> np.ndarray:
        """Encode a part of a text, int32 [T], without special tokens."""
        return self._checked_ids(text, lambda: self._encode_piece(text, False))

    def encode_continuation(self, text: str, allow_special: bool = False) -> np.ndarray:
        """Encode a text that follows another one, int32 [T]: no special tokens, no space that only a first word gets.

        Read off a text that begins with another character, whose ids are removed again. Without such a character (all
        of them become part of a longer token), the ids are those of `encode_piece`.

        Args:
          allow_special: special tokens inside the text become their ids. Never for untrusted text.
        """
        for character, start in self._leads.items():
            if character.isspace() and text[:1].isspace():
                continue  # runs of white space can be one word, whose pieces are others
            ids = self._checked_ids(text, functools.partial(self._encode_piece, character + text, allow_special))
            if ids[: len(start)].tolist() == start:
                return ids[len(start) :]
        return self._checked_ids(text, lambda: self._encode_piece(text, allow_special))

    @functools.cached_property
    def _leads(self) -> dict[str, list[int]]:
        """Characters that a text may follow, and their ids."""
        ids = {}
        for character in "\n.,-a1":
            with contextlib.suppress(UserError):  # a character without an id
                ids[character] = self.encode_piece(character).tolist()
        return {character: start for character, start in ids.items() if start}

    def decode(self, ids: ArrayLike) -> str:
        """Decode integers [T] to a text, special tokens skipped. Raises UserError for a negative id."""
        ids = np.asarray(ids)
        if ids.size and (ids.ndim != 1 or ids.dtype.kind not in "iu" or ids.min() < 0):
            raise UserError("ids: must be integers [T] of at least 0. Decode row by row.")
        text = self.decode_raw(ids)
        return clean_up(text) if self.cleans_up else text

    def decode_raw(self, ids: ArrayLike) -> str:
        """`decode`, without removing the spaces that tokenizer_config.json asks to remove."""
        with self._library_errors("no text by"):
            return self._decode([int(i) for i in np.asarray(ids)])

    @functools.cached_property
    def settings(self) -> TokenizerSettings:
        """Class, options and special tokens, as tokenizer_config.json and the like have them."""
        return TokenizerSettings.of_files(self._saved["class"], self._saved["files"])

    def named_tokens(self) -> dict[str, str]:
        """The special tokens that the files or their class name, by "bos", "eos", "unk" and so on."""
        return {name: token.content for name, token in self.settings.named({}).items()}

    @property
    def cleans_up(self) -> bool:
        """True if decoding removes spaces before punctuation (clean_up_tokenization_spaces)."""
        return self.settings.flag("clean_up_tokenization_spaces", False)
