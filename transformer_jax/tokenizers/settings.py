"""tokenizer_config.json: class, options and special tokens of a tokenizer, with special_tokens_map.json and the like.

As the reference library reads them: tokens in `added_tokens_decoder` of tokenizer_config.json, or else those of
special_tokens_map.json, added_tokens.json and tokenizer.json, then the named special tokens.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping

from tokenizers import AddedToken

from transformer_jax.errors import UserError

CONFIG = "tokenizer_config.json"
NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
MODEL_CLASSES = {  # tokenizer class of a model_type, for folders that name none
    "gpt2": "GPT2Tokenizer",
    "bert": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "bart": "RobertaTokenizer",
}
_OTHER_NAMES = {
    "BartTokenizer": "RobertaTokenizer",
    "DistilBertTokenizer": "BertTokenizer",
    "MobileBertTokenizer": "BertTokenizer",
    "SqueezeBertTokenizer": "BertTokenizer",
    "ElectraTokenizer": "BertTokenizer",
}
_TOKEN_OPTIONS = ("single_word", "lstrip", "rstrip", "normalized")


def class_name(tokenizer_config: Mapping[str, object], config: Mapping[str, object]) -> str:
    """Class of a tokenizer without the suffix "Fast", from tokenizer_config.json or else config.json; "" if none."""
    model_type = config.get("model_type")
    default = MODEL_CLASSES.get(model_type, "") if isinstance(model_type, str) else ""
    name = tokenizer_config.get("tokenizer_class") or config.get("tokenizer_class") or default
    if not isinstance(name, str):
        raise UserError(f"{CONFIG}: tokenizer_class={name!r:.80}: must be the name of a class.")
    name = name[:80].removesuffix("Fast")
    return _OTHER_NAMES.get(name, name)


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
    """Settings of a tokenizer by file: tokenizer_config.json, special_tokens_map.json, added_tokens.json.

    Raises:
      UserError: a file that is no JSON object; when it is read, a value of another type.
    """

    name: str  # of its class
    config: dict[str, object]
    special_tokens_map: dict[str, object]
    added_tokens: dict[str, object]  # ids by token, in folders of old versions

    @classmethod
    def of_files(cls, name: str, texts: Mapping[str, str]) -> "TokenizerSettings":
        """Read the settings from the files of a tokenizer, contents by name."""
        names = (CONFIG, "special_tokens_map.json", "added_tokens.json")
        return cls(name, *(json_object(name, texts.get(name, "{}")) for name in names))

    def flag(self, name: str, default: bool) -> bool:
        """A setting that is true or false; null and none mean the default."""
        value = self.config.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise UserError(f"{CONFIG}: {name}={value!r:.80}: must be true or false.")
        return value

    @functools.cached_property
    def _tokens(self) -> dict[str, object]:
        has_decoder = "added_tokens_decoder" in self.config
        return self.config if has_decoder else self.config | self.special_tokens_map

    def named(self, defaults: Mapping[str, str]) -> dict[str, AddedToken]:
        """Special tokens by name ("bos", "pad", ...); `defaults` of the class fill those that no file names."""
        tokens = {}
        for name in NAMED:
            value = self._tokens.get(f"{name}_token", defaults.get(name))
            if value is not None:
                tokens[name] = _token(f"{name}_token", value)
        return tokens

    def extra(self) -> list[AddedToken]:
        """Further special tokens, in their order: those under names of a model's own, then lists of them."""
        named = [f"{name}_token" for name in NAMED]
        own = {name: text for name, text in self._tokens.items() if name.endswith("_token") and name not in named}
        values = self._tokens.get("extra_special_tokens") or self._tokens.get("additional_special_tokens") or []
        values = list(values.values()) if isinstance(values, dict) else values
        if not isinstance(values, list):
            raise UserError(f"{CONFIG}: additional_special_tokens={values!r:.80}: must be a list of tokens.")
        tokens = [text for text in own.values() if isinstance(text, str)] + values
        return [_token("additional_special_tokens", value) for value in tokens]

    def added(self, special: set[str]) -> dict[int, AddedToken]:
        """Tokens by id that a file lists as added; `special` are the special ones of a file that does not say so."""
        decoder = self.config.get("added_tokens_decoder")
        if decoder is not None:
            if not isinstance(decoder, dict) or not all(i.isdecimal() and len(i) < 10 for i in decoder):
                raise UserError(f"{CONFIG}: added_tokens_decoder={decoder!r:.80}: must map ids to tokens.")
            return {int(i): _token("added_tokens_decoder", token, False) for i, token in decoder.items()}
        if not all(type(i) is int for i in self.added_tokens.values()):
            raise UserError(f"added_tokens.json: {self.added_tokens!r:.80}: must map tokens to ids.")
        return {
            i: AddedToken(token, normalized=token not in special, special=token in special)
            for token, i in self.added_tokens.items()
            if type(i) is int
        }


def _token(name: str, value: object, is_special: bool = True) -> AddedToken:
    """An added token of its text, or of a dict with its text and options."""
    if isinstance(value, str) and value:
        return AddedToken(value, special=is_special)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str) or not value["content"]:
        raise UserError(f"{CONFIG}: {name}={value!r:.80}: must be a token: a string, or an object with its 'content'.")
    options = {option: value[option] for option in _TOKEN_OPTIONS if isinstance(value.get(option), bool)}
    is_special = is_special or value.get("special") is True
    return AddedToken(value["content"], special=is_special, **options)


def json_object(name: str, text: str) -> dict[str, object]:
    """The object of a JSON file. Raises UserError if it has none."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"tokenizer file {name}: is not JSON ({str(error)[:80]}).") from error
    if not isinstance(values, dict):
        raise UserError(f"{name}: must hold an object, not a {type(values).__name__}.")
    return values
