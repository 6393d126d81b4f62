"""Tokenizers read from the files of a pre-trained model: tokenizer.json, or SentencePiece models.

`encode` adds the special tokens that the model expects. Something that looks like a special token inside a text, such
as "</s>", is encoded as text unless `allow_special=True`: untrusted text must not be able to end a prompt.
"""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import tokenizers as hugging_face

from transformer_jax.errors import UserError
from transformer_jax.tokenizers.files import BINARY_SUFFIXES, SETTINGS_FILES, FileTokenizer
from transformer_jax.tokenizers.sentencepiece_files import MarianTokenizer, SentencePieceTokenizer

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
    required_files = ("tokenizer.json",)
    _library: hugging_face.Tokenizer

    def _load(self) -> hugging_face.Tokenizer:
        tokenizer = hugging_face.Tokenizer.from_str(self.files["tokenizer.json"].decode())
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

    def token_name(self, i: int) -> str:
        """The token of an id, as the vocabulary spells it."""
        return self._library.id_to_token(i) or ""

    def settings(self) -> dict:
        """The contents of tokenizer.json, as the library reads them: decoder, added_tokens, and so on."""
        return json.loads(self._library.to_str())

    def _encode(self, text: str, allow_special: bool) -> list[int]:
        self._library.encode_special_tokens = not allow_special
        return self._library.encode(text).ids

    def _encode_piece(self, text: str, allow_special: bool) -> list[int]:
        self._library.encode_special_tokens = not allow_special
        return self._library.encode(text, add_special_tokens=False).ids

    def _find_ends(self) -> tuple[list[int], list[int]]:
        # Of text that has tokens: around an empty text, nothing tells the two ends apart.
        self._library.encode_special_tokens = True
        for text in (*"a1.\u4e00", *self._library.get_vocab(with_added_tokens=False)):
            encoding = self._library.encode(text)
            if of_text := [i for i, sequence in enumerate(encoding.sequence_ids) if sequence is not None]:
                return encoding.ids[: of_text[0]], encoding.ids[of_text[-1] + 1 :]
        return self._library.encode("").ids, []

    def _decode(self, ids: list[int]) -> str:
        return self._library.decode(ids, skip_special_tokens=True)


FILE_TOKENIZERS: dict[str, type[FileTokenizer]] = {
    cls.kind: cls for cls in (JsonTokenizer, SentencePieceTokenizer, MarianTokenizer)
}
OTHER_FILES = ("vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "sentencepiece.bpe.model", "source.spm")


def _check_num_sentinels(number: object) -> int:
    if type(number) is not int or not 0 <= number < 10_000:  # their names have at most four digits
        raise UserError(f"tokenizer_config.json: extra_ids={number!r:.80}: must be an integer from 0 to 9,999.")
    return number


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
    for cls in FILE_TOKENIZERS.values():
        if not all(has(name) for name in cls.required_files):
            continue
        contents = {name: data(name) for name in (*cls.required_files, *SETTINGS_FILES) if has(name)}
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
