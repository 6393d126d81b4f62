"""JsonTokenizer: a tokenizer.json, with the class and settings that tokenizer_config.json names beside it."""

import json
from typing import ClassVar

import numpy as np
import tokenizers as hugging_face

from transformer_jax.tokenizers.files import FileTokenizer
from transformer_jax.tokenizers.growth import Growth, growth_of, steps
from transformer_jax.tokenizers.layouts import LAYOUTS, Vocabulary, add_tokens, build_tokenizer
from transformer_jax.tokenizers.settings import json_object

SPECIAL_TOKENS = {
    "pad": ("<pad>", "[PAD]"),
    "bos": ("<s>", "<bos>", "[CLS]", "<|endoftext|>"),
    "eos": ("</s>", "<eos>", "[SEP]", "<|endoftext|>"),
    "mask": ("[MASK]", "<mask>"),
}

MAX_GAPS = 2**20  # ids without a token, about


class JsonTokenizer(FileTokenizer):
    """tokenizer.json of Hugging Face's fast tokenizers.

    If neither the model's configuration nor the tokenizer's names the special tokens, they are found by their common
    names.
    """

    kind = "tokenizer.json"
    required_files: ClassVar[tuple[str, ...]] = ("tokenizer.json",)
    default_class = "PreTrainedTokenizerFast"
    _library: hugging_face.Tokenizer
    _growth: Growth
    _num_ids: int

    def _load(self) -> hugging_face.Tokenizer:
        tokenizer = self._build()
        tokenizer.no_padding()
        tokenizer.no_truncation()
        object.__setattr__(self, "_growth", growth_of(tokenizer))
        ids = tokenizer.get_vocab(with_added_tokens=True).values()
        object.__setattr__(self, "_num_ids", max(ids, default=-1) + 1)
        if self._num_ids > MAX_GAPS + 16 * len(ids):
            raise ValueError(f"id {self._num_ids - 1}, and only {len(ids)} tokens")
        return tokenizer

    def _build(self) -> hugging_face.Tokenizer:
        """Build the library's tokenizer of the files."""
        text = self.text_files["tokenizer.json"]
        tokenizer = hugging_face.Tokenizer.from_str(text)
        growth_of(tokenizer)  # of the file as it is, although its class may not use all of it
        try:
            tokenizer.encode("Is it 1.2, a caf\u00e9?")  # malformed parts may show only here
        except Exception as error:  # the library has no other class
            if "WordLevel error: Missing [UNK] token" not in str(error):  # a text has a word without an id
                raise
        if self.settings.name not in LAYOUTS:
            add_tokens(tokenizer, Vocabulary({}), self.settings)
            return tokenizer
        values = json_object("tokenizer.json", text)
        model = values["model"]
        assert isinstance(model, dict), "the library has read it"
        if _model_type(model) != LAYOUTS[self.settings.name].model or _is_byte_level(values, self.settings.name):
            add_tokens(tokenizer, Vocabulary({}), self.settings)
            return tokenizer
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges", ()))
        merges = [(first, second) for first, second in pairs]
        added = tokenizer.get_added_tokens_decoder()
        vocabulary = Vocabulary(model["vocab"], merges, added, (), tokenizer.post_processor, is_json=True)
        return build_tokenizer(vocabulary, self.settings)

    def _special_id(self, name: str, default: int) -> int:
        if name in self._saved["ids"]:
            return self._saved["ids"][name]
        named = self.settings.named({}).get(name)
        tokens = (*([named.content] if named else []), *SPECIAL_TOKENS[name])
        ids = (self._library.token_to_id(token) for token in tokens)
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
        """Number of ids, added tokens and ids without a token included."""
        return self._num_ids

    @property
    def mask_id(self) -> int:
        """Id of the mask token, or the first id that no text has."""
        return self._special_id("mask", self.vocab_size)

    def pieces(self) -> list[str | None]:
        """The piece of each id as the vocabulary spells it, None for an unused id."""
        return [self._library.id_to_token(i) for i in range(self.vocab_size)]

    def token_name(self, i: int) -> str:
        """The token of an id, as the vocabulary spells it."""
        return self._library.id_to_token(i) or ""

    def decoder_steps(self) -> list[dict]:
        """The steps of decoding, as tokenizer.json describes them."""
        decoder = self._library.decoder
        return [*steps(decoder, "decoders")] if decoder else [{"type": "none"}]

    def named_tokens(self) -> dict[str, str]:
        """The special tokens that the files or their class name, by "bos", "eos", "unk" and so on."""
        layout = LAYOUTS.get(self.settings.name)
        named = self.settings.named(layout.special_tokens if layout else {})
        return {name: token.content for name, token in named.items()}

    def added_tokens(self) -> dict[str, bool]:
        """The tokens that were added to the vocabulary, and whether they are special."""
        return {token.content: token.special for token in self._library.get_added_tokens_decoder().values()}

    def _prepare(self, text: str, allow_special: bool) -> None:
        self._growth.check(self._library, text)
        self._library.encode_special_tokens = not allow_special or self.settings.flag("split_special_tokens", False)

    def _encode(self, text: str, allow_special: bool) -> list[int]:
        self._prepare(text, allow_special)
        return self._library.encode(text).ids

    def _encode_piece(self, text: str, allow_special: bool) -> list[int]:
        self._prepare(text, allow_special)
        return self._library.encode(text, add_special_tokens=False).ids

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Encode a text whose special tokens become their ids, none around it: ids [T], int32; characters [T, 2].

        Never for untrusted text.
        """
        offsets: list[tuple[int, int]] = []

        def encode() -> list[int]:
            self._prepare(text, allow_special=True)
            encoding = self._library.encode(text, add_special_tokens=False)
            offsets.extend(encoding.offsets)
            return encoding.ids

        return self._checked_ids(text, encode), np.array(offsets, np.int32).reshape(-1, 2)

    def _find_ends(self) -> tuple[list[int], list[int]]:
        # Of text that has tokens: around an empty text, nothing tells the two ends apart.
        self._library.encode_special_tokens = True
        for text in (*"a1.\u4e00", *self._library.get_vocab(with_added_tokens=False)):
            try:
                encoding = self._library.encode(text)
            except Exception:  # the library has no other class for a character without an id
                continue
            if of_text := [i for i, sequence in enumerate(encoding.sequence_ids) if sequence is not None]:
                return encoding.ids[: of_text[0]], encoding.ids[of_text[-1] + 1 :]
        return self._library.encode("").ids, []

    def _decode(self, ids: list[int]) -> str:
        return self._library.decode(ids, skip_special_tokens=True)

    @property
    def cleans_up(self) -> bool:
        """True if decoding removes spaces before punctuation."""
        # The rules are those of words apart: in BPE, a space before a comma is a space of the text.
        return super().cleans_up and not isinstance(self._library.model, hugging_face.models.BPE)


def _model_type(model: dict) -> str:
    """Type of the model in a tokenizer.json; old files do not name it."""
    return model.get("type") or ("BPE" if "merges" in model else "WordPiece")


def _is_byte_level(values: dict, name: str) -> bool:
    """True for a byte-level tokenizer.json whose class is LlamaTokenizer: folders of Llama 3, of no class's layout."""
    parts = json.dumps([values.get("pre_tokenizer"), values.get("decoder")])
    return name == "LlamaTokenizer" and '"ByteLevel"' in parts
