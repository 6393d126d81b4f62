"""Export of tokenizers to a Hugging Face folder: tokenizer.json and tokenizer_config.json that give the same ids.

Limits. `tokenizers` takes no lone surrogates, and decodes the bytes of one to U+FFFD, three times. It lower-cases
letters that are newer than Python's Unicode. A character that a `char` tokenizer lacks is an error there, too.
"""

import json
from collections.abc import Callable
from typing import NamedTuple

import tokenizers as hugging_face

from transformer_jax.errors import UserError
from transformer_jax.tokenizers.base import CharTokenizer, Tokenizer
from transformer_jax.tokenizers.files import WORD_SEPARATOR, FileTokenizer
from transformer_jax.tokenizers.json_tokenizer import JsonTokenizer
from transformer_jax.tokenizers.subwords import BPETokenizer, SubwordTokenizer
from transformer_jax.tokenizers.token_bytes import BYTE_OF

# In the order of their ids. GPT-2's pattern splits punctuation off letters, so that no text is one of these pieces.
SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
MASK_TOKEN = "<mask>"
NEVER = -1e6  # log-probability of a special token in a unigram model: below that of any text
# The lower case of a sigma at the end of a word differs (Unicode, section 3.13: Final_Sigma); `Lowercase` has one only.
_CASED = r"[\p{Cased}&&[^\p{Case_Ignorable}]]"
FINAL_SIGMA = rf"(?<={_CASED}\p{{Case_Ignorable}}*)Σ(?!\p{{Case_Ignorable}}*{_CASED})"
_LOWERCASE = [{"type": "Replace", "pattern": {"Regex": FINAL_SIGMA}, "content": "ς"}, {"type": "Lowercase"}]
# A space before a text, unless it begins with one or is empty. (Replacing an empty match ends the library in a panic.)
_PREFIX_SPACE = [
    {"type": "Prepend", "prepend": " "},
    {"type": "Replace", "pattern": {"Regex": r"\A  "}, "content": " "},
]


class TextFormat(NamedTuple):
    """Form in which a model reads text: its special tokens, and what happens to the text before."""

    has_bos: bool = False  # before a text
    has_eos: bool = False  # after a text
    has_mask: bool = False  # the first id that no text has is that of the mask token
    lowercase: bool = False
    word_separator: str | None = None  # of a tagger: before every word, the first one as well; None: no tagger
    max_len: int = 0  # longest text in tokens, special ones included; 0: any
    padding_side: str = "right"


def tokenizer_files(tokenizer: Tokenizer, form: TextFormat) -> dict[str, bytes]:
    """Return the files of a tokenizer for a Hugging Face folder, contents by name.

    A tokenizer that was read from files keeps them, changed where the run says more.

    Raises:
      UserError: a kind of tokenizer that no such file can describe, a pair of them, or lower case for SentencePiece.
    """
    if isinstance(tokenizer, FileTokenizer):
        return _changed_files(tokenizer, form)
    if tokenizer.kind == "pair":
        raise UserError(
            "run: has a tokenizer for the source and one for the target, and a Hugging Face folder has one tokenizer. "
            "Train with tokenizer.separate=False, or save with the tokenizer omitted: "
            "tj.save_pretrained(dataclasses.replace(run, tokenizer=None), folder)."
        )
    if tokenizer.kind not in _SETTINGS:
        known = ", ".join(_SETTINGS)
        raise UserError(f"tokenizer.kind={tokenizer.kind!r}: cannot be written as tokenizer.json. Known: {known}.")
    return {
        "tokenizer.json": _tokenizer_json(_SETTINGS[tokenizer.kind](tokenizer), form),
        "tokenizer_config.json": _to_json(_tokenizer_config(form)),
    }


def _tokenizer_config(form: TextFormat) -> dict[str, object]:
    return (
        {"tokenizer_class": "PreTrainedTokenizerFast"}
        | SPECIAL_TOKENS
        | ({"mask_token": MASK_TOKEN} if form.has_mask else {})
        | ({"model_max_length": form.max_len} if form.max_len else {})
        | ({WORD_SEPARATOR: ""} if form.word_separator == "" else {})
        | {
            "padding_side": form.padding_side,
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": not form.has_mask,  # "</s>" in a text is text; a mask has to be written
            "model_input_names": ["input_ids", "attention_mask"],  # GPT-2 would add the embedding of token types
        }
    )


def _tokenizer_json(settings: dict, form: TextFormat) -> bytes:
    """tokenizer.json of the settings of a tokenizer, whose vocabulary begins with the special tokens."""
    normalizers = list(_LOWERCASE) if form.lowercase else []
    if form.word_separator == " ":
        normalizers += _PREFIX_SPACE
    if normalizers:
        settings = settings | {"normalizer": {"type": "Sequence", "normalizers": normalizers}}
    library = hugging_face.Tokenizer.from_str(json.dumps(settings))
    library.add_special_tokens([*SPECIAL_TOKENS.values(), *([MASK_TOKEN] if form.has_mask else [])])
    before = "<s> " if form.has_bos else ""
    after = " </s>" if form.has_eos else ""
    if before or after:
        ids = [(token, i) for i, token in enumerate(SPECIAL_TOKENS.values())]
        library.post_processor = hugging_face.processors.TemplateProcessing(
            f"{before}$A{after}", f"{before}$A{after} $B:0{after}", ids
        )
    return library.to_str(pretty=True).encode()


def _numbered(pieces: list[str]) -> dict[str, int]:
    """Ids of the special tokens and of the pieces of text."""
    return {token: i for i, token in enumerate([*SPECIAL_TOKENS.values(), *pieces])}


def _subwords(tokenizer: SubwordTokenizer) -> dict:
    settings: dict = json.loads(tokenizer._model.to_str())  # its ids of text start at 0
    model = settings["model"]
    if isinstance(model["vocab"], list):  # unigram: pieces and their log-probabilities
        model["vocab"] = [*([token, NEVER] for token in SPECIAL_TOKENS.values()), *model["vocab"]]
    else:
        model["vocab"] = _numbered(tokenizer.pieces())
    return settings


def _byte(tokenizer: Tokenizer) -> dict:
    """Byte-level BPE without merges, the pieces in the order of their bytes."""
    settings: dict = json.loads(BPETokenizer()._model.to_str())
    settings["model"]["vocab"] = _numbered(sorted(BYTE_OF, key=lambda character: BYTE_OF[character]))
    return settings


def _char(tokenizer: CharTokenizer) -> dict:
    """Words of one character each; one that is unknown is an error, since there is no token for it."""
    if any("\ud800" <= character <= "\udfff" for character in tokenizer.learned):
        raise UserError(
            "tokenizer.kind='char': has a lone surrogate, which tokenizer.json cannot hold. Take tokenizer.kind=byte."
        )
    library = hugging_face.Tokenizer(hugging_face.models.WordLevel(_numbered(list(tokenizer.learned)), "<unk>"))
    library.pre_tokenizer = hugging_face.pre_tokenizers.Split(hugging_face.Regex(r"[\s\S]"), "isolated")
    library.decoder = hugging_face.decoders.Fuse()
    settings: dict = json.loads(library.to_str())
    return settings


_SETTINGS: dict[str, Callable[..., dict]] = {
    "char": _char,
    "byte": _byte,
    "bpe": _subwords,
    "wordpiece": _subwords,
    "unigram": _subwords,
}


def _changed_files(tokenizer: FileTokenizer, form: TextFormat) -> dict[str, bytes]:
    """The files of a tokenizer that was read from files, with a lower-cased text and the separator of words."""
    files = dict(tokenizer.files)
    changes: dict[str, object] = {WORD_SEPARATOR: ""} if form.word_separator == "" else {}
    if form.lowercase:
        if not isinstance(tokenizer, JsonTokenizer):
            raise UserError(
                f"run: was trained on lower-cased texts, which {', '.join(tokenizer.required_files)} cannot express. "
                "Train with data.lowercase=False, or keep the run directory (tj.save)."
            )
        settings = json.loads(files["tokenizer.json"])
        old = [settings["normalizer"]] if settings.get("normalizer") else []
        settings["normalizer"] = {"type": "Sequence", "normalizers": [*_LOWERCASE, *old]}
        files["tokenizer.json"] = _to_json(settings)
        changes["tokenizer_class"] = "PreTrainedTokenizerFast"  # others make a normalizer of their own
    if changes:
        config = json.loads(files.get("tokenizer_config.json", b"{}"))
        files["tokenizer_config.json"] = _to_json(config | changes)
    return files


def word_separator(tokenizer: Tokenizer | None) -> str:
    """Return the separator between the words that a tagger reads, as the files of a tokenizer say: " " or "".

    Raises:
      UserError: anything else.
    """
    if not isinstance(tokenizer, FileTokenizer) or "tokenizer_config.json" not in tokenizer.files:
        return " "
    try:
        separator = json.loads(tokenizer.files["tokenizer_config.json"])[WORD_SEPARATOR]
    except (ValueError, RecursionError, LookupError, TypeError):
        return " "  # the field is not there; whether the file is sound is checked by what reads its other fields
    if separator not in ("", " "):
        raise UserError(f"tokenizer_config.json: {WORD_SEPARATOR}={separator!r:.80}: must be a space or nothing.")
    return str(separator)


def _to_json(values: dict) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
