"""Secret names of added tokens, and a tokenizer's twin that knows them by these names only."""

import json
import re
import secrets
from collections.abc import Mapping

from transformer_jax.errors import UserError
from transformer_jax.tokenizers.json_tokenizer import JsonTokenizer

# Noncharacters: Unicode reserves them for internal use.
FIRST, LAST = "\ufdd0", "\ufdef"  # around a name
_INNER = [chr(code) for code in range(0xFDD1, 0xFDEF)]


def secret_names(tokenizer: JsonTokenizer) -> dict[str, str]:
    """Names of the added tokens of a tokenizer, by token; those that are text (a word, white space) have none."""
    added = tokenizer.added_tokens()
    return {token: _secret_name() for token, is_special in added.items() if is_special or not _is_word(token)}


def twin_of(tokenizer: JsonTokenizer, names: Mapping[str, str]) -> JsonTokenizer:
    """The tokenizer with other names of added tokens, and the same ids.

    Raises:
      UserError: a token whose id would change.
    """
    library = tokenizer._library
    values = _renamed(json.loads(library.to_str()), names)
    saved = {"ids": {}, "class": "", "files": {"tokenizer.json": json.dumps(values)}}
    twin = JsonTokenizer((json.dumps(saved),))
    for token, name in names.items():
        if twin._library.token_to_id(name) != library.token_to_id(token):
            raise UserError(
                f"tokenizer.json: the id of {token!r:.80} is not kept by another name, so that texts of a chat "
                "could not be told from special tokens. If you trust all of them, take allow_special=True."
            )
    return twin


def hide(names: Mapping[str, str], value: object) -> object:
    """A value with the secret names in place of all added tokens in its texts, the longest first."""
    if isinstance(value, str):
        longest_first = sorted(names, key=len, reverse=True)
        pattern = "|".join(map(re.escape, longest_first)) or "(?!)"
        return re.sub(pattern, lambda found: names[found[0]], value)
    if isinstance(value, dict):
        return {hide(names, key): hide(names, item) for key, item in value.items()}
    return [hide(names, item) for item in value] if isinstance(value, list) else value


def _secret_name() -> str:
    return FIRST + "".join(secrets.choice(_INNER) for _ in range(12)) + LAST


def _is_word(token: str) -> bool:
    """True for an added token that is text: a word, white space or a single character."""
    return len(token) == 1 or re.fullmatch(r"[\w\s]+", token) is not None


def _renamed(values: dict, names: Mapping[str, str]) -> dict:
    """The tokenizer.json in which tokens have other names, and no merge makes one of them."""
    for token in values["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = values["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(piece, piece): i for piece, i in vocabulary.items()}
    else:  # Unigram: pieces with scores
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [[a, b] for a, b in pairs if not {a, b, a + b} & names.keys()]
    values["post_processor"] = _byte_level(values["post_processor"])
    return values


def _byte_level(step: dict | None) -> dict | None:
    """Of the steps after the model, those that change offsets: a template around a text is the chat template's."""
    if step and step["type"] == "Sequence":
        kept = [inner for inner in map(_byte_level, step["processors"]) if inner]
        return step | {"processors": kept} if kept else None
    return step if step and step["type"] == "ByteLevel" else None
