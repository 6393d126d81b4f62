"""Tokenizers read from the files of a pre-trained model: tokenizer.json, vocabularies, or SentencePiece models.

`encode` adds the special tokens that the model expects. Something that looks like a special token inside a text, such
as "</s>", is encoded as text unless `allow_special=True`: untrusted text must not be able to end a prompt.
"""

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from transformer_jax.errors import UserError
from transformer_jax.tokenizers.files import BINARY_SUFFIXES, SETTINGS_FILES, TEMPLATE_FILE, FileTokenizer
from transformer_jax.tokenizers.json_tokenizer import JsonTokenizer
from transformer_jax.tokenizers.sentencepiece_files import MarianTokenizer, SentencePieceTokenizer
from transformer_jax.tokenizers.settings import CONFIG, class_name, json_object
from transformer_jax.tokenizers.vocabulary_files import BPEFilesTokenizer, LlamaFileTokenizer, WordPieceFileTokenizer

FILE_TOKENIZERS: dict[str, type[FileTokenizer]] = {
    cls.kind: cls
    for cls in (
        JsonTokenizer,
        SentencePieceTokenizer,
        MarianTokenizer,
        BPEFilesTokenizer,
        WordPieceFileTokenizer,
        LlamaFileTokenizer,
    )
}
UNSUPPORTED_FILES = ("sentencepiece.bpe.model", "tokenizer.tiktoken", "tekken.json", "bpe.codes")


def _check_num_sentinels(number: object) -> int:
    if type(number) is not int or not 0 <= number < 10_000:  # their names have at most four digits
        raise UserError(f"tokenizer_config.json: extra_ids={number!r:.80}: must be an integer from 0 to 9,999.")
    return number


def read_tokenizer(
    has: Callable[[str], bool],
    data: Callable[[str], bytes],
    ids: dict[str, int],
    templates: Callable[[], Mapping[str, bytes]] = dict,
) -> FileTokenizer | None:
    """Read the tokenizer of a folder; None if there is none of a supported kind.

    Args:
      has: tells whether the folder has a file of that name.
      data: reads the bytes of a file.
      ids: the special ids that the model's configuration names: "pad", "bos" and "eos".
      templates: reads the files in its folder additional_chat_templates, by name.

    Raises:
      UserError: malformed files.
    """
    for cls in FILE_TOKENIZERS.values():
        if not all(has(name) for name in cls.required_files):
            continue
        contents = {name: data(name) for name in (*cls.required_files, *SETTINGS_FILES) if has(name)}
        config = data("config.json") if has("config.json") else b"{}"
        try:
            texts = {
                name: base64.b64encode(content).decode() if name.endswith(BINARY_SUFFIXES) else content.decode()
                for name, content in contents.items()
            }
            texts = _with_templates(texts, {name: content.decode() for name, content in templates().items()})
            settings = json_object("tokenizer_config.json", texts.get("tokenizer_config.json", "{}"))
            name = class_name(settings, json_object("config.json", config.decode()))
            if cls.classes and name not in cls.classes:
                continue
            if cls is SentencePieceTokenizer:
                ids = ids | {"extra": _check_num_sentinels(settings.get("extra_ids", 100))}
        except UserError:
            raise
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"tokenizer files {', '.join(contents)}: not readable ({error}).") from error
        return cls((json.dumps({"ids": ids, "class": name, "files": texts}),))
    return None


def _with_templates(texts: dict[str, str], more: dict[str, str]) -> dict[str, str]:
    """The files with more chat templates, by file name, in a list in tokenizer_config.json, beside the default."""
    if not more:
        return texts
    templates = {name.removesuffix(".jinja"): text for name, text in sorted(more.items())}
    if TEMPLATE_FILE in texts:
        templates = {"default": texts[TEMPLATE_FILE]} | templates
    listed = [{"name": name, "template": text} for name, text in templates.items()]
    config = json_object(CONFIG, texts.get(CONFIG, "{}")) | {"chat_template": listed}
    rest = {name: text for name, text in texts.items() if name != TEMPLATE_FILE}
    return rest | {CONFIG: json.dumps(config, indent=2, ensure_ascii=False) + "\n"}


def missing_tokenizer(folder: str) -> UserError:
    """Return the error for a run or folder without a supported tokenizer, which names the other tokenizer files."""
    path = Path(folder).expanduser()
    names = {name for cls in FILE_TOKENIZERS.values() for name in cls.required_files}
    there = [name for name in (*sorted(names), *UNSUPPORTED_FILES) if folder and (path / name).is_file()]
    needs = [
        _needs(cls, there) for cls in FILE_TOKENIZERS.values() if any(name in there for name in cls.required_files)
    ]
    has = f"has {', '.join(there)}, " if there else ""
    needs = [*(needs or ["spiece.model", "tokenizer.model", "vocab.txt"]), "tokenizer.json"]
    return UserError(
        f"run: no supported tokenizer found in {folder or 'this run'} ({has}needs {', or '.join(needs)}). "
        "Add one, or pass token ids to tj.logits."
    )


def _needs(cls: type[FileTokenizer], there: list[str]) -> str:
    """The files of a kind that are missing, or the class that has to be named if there are all."""
    missing = [name for name in cls.required_files if name not in there]
    return " and ".join(missing) or f"tokenizer_class={' or '.join(cls.classes)} in tokenizer_config.json"
