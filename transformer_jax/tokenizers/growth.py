"""Growth of texts in a tokenizer.json: bounds, so that an untrusted one does not turn a short text into gigabytes.

A normalizer may replace a character by many, and the next one each of these: twenty such steps end the process. So each
step has a largest growth, known from its description, and their product decides: refused at once; measured for each
text, piece by piece, before the text is encoded; or harmless, as in every tokenizer in use.
"""

import base64
import dataclasses
import json
import struct
from collections.abc import Iterator
from typing import Protocol

import tokenizers as hugging_face

from transformer_jax.errors import UserError

MAX_IDS_PER_BYTE = 1_000  # of a short text
MAX_IDS_PER_BYTE_OF_LONG = 32
LONG = 2**22  # characters that a text may always become, and that are held to measure one
HARMLESS = 32  # growth of no consequence
HOPELESS = 2**20  # growth that is too large to measure
MAX_TEMPLATE = 1_000  # special tokens around a text
MAX_PIECE = 10_000  # characters of a token; the longest in use have a few hundred
MAX_WORD = 10_000  # characters of a word in WordPiece, whose time grows with their square; 100 in use

# Characters that one becomes in normalizers that have no effect on their own result, so that several in a row grow a
# text at most twice as much as the largest.
_UNICODE = {"NFC": 4, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 2, "Nmt": 1, "Strip": 1, "StripAccents": 1}
_STEPS = {"BertNormalizer": 12, "ByteLevel": 4, "Metaspace": 2}
_SHRINKING = (  # pre-tokenizers and decoders that add nothing
    *("Split", "Whitespace", "WhitespaceSplit", "Punctuation", "Digits", "BertPreTokenizer", "CharDelimiterSplit"),
    *("UnicodeScripts", "FixedLength", "ByteFallback", "Fuse", "CTC", "BPEDecoder", "WordPiece"),
)


class _Part(Protocol):
    """Part of a tokenizer, which describes itself as tokenizer.json does."""

    def __getstate__(self) -> bytes: ...


@dataclasses.dataclass(frozen=True)
class Growth:
    """Largest growth of a text: characters that one becomes in the normalizer, and then before the model."""

    normalizer: float
    pre_tokenizer: float

    def check(self, tokenizer: hugging_face.Tokenizer, text: str) -> None:
        """Raise UserError for a text that becomes more ids than any reasonable tokenizer makes of it."""
        growth = self.normalizer * self.pre_tokenizer
        if growth <= HARMLESS or growth <= MAX_IDS_PER_BYTE and growth * len(text) <= LONG:
            return
        num_bytes = len(text.encode())
        allowed = min(MAX_IDS_PER_BYTE * num_bytes, max(LONG, MAX_IDS_PER_BYTE_OF_LONG * num_bytes))
        size = max(1, int(LONG / growth))
        total = 0.0
        for first in range(0, len(text), size):
            total += self.pre_tokenizer * len(tokenizer.normalizer.normalize_str(text[first : first + size]))
            if total > allowed:
                raise _refused(f"makes more than {allowed:,} characters of a text of {num_bytes:,} bytes")


def growth_of(tokenizer: hugging_face.Tokenizer) -> Growth:
    """Bounds on the growth of texts, from what the parts of a tokenizer say about themselves.

    Raises:
      UserError: parts that could grow a text, or a list of ids, without a reasonable bound.
    """
    normalizer = _product(steps(tokenizer.normalizer, "normalizers"))
    pre_tokenizer = _product(steps(tokenizer.pre_tokenizer, "pretokenizers"))
    if normalizer * pre_tokenizer > HOPELESS or pre_tokenizer > HARMLESS:
        raise _refused("has normalizers that can make millions of characters of one")
    if _product(steps(tokenizer.decoder, "decoders")) > HARMLESS:
        raise _refused("has a decoder that can make dozens of characters of one")
    _check_template(steps(tokenizer.post_processor, "processors"))
    if any(len(piece) > MAX_PIECE for piece in tokenizer.get_vocab()):
        raise _refused(f"has a token of more than {MAX_PIECE:,} characters")
    model = tokenizer.model
    if isinstance(model, hugging_face.models.WordPiece) and model.max_input_chars_per_word > MAX_WORD:
        raise _refused(f"has max_input_chars_per_word={model.max_input_chars_per_word}, above {MAX_WORD:,}")
    return Growth(normalizer, pre_tokenizer)


def _refused(problem: str) -> UserError:
    return UserError(f"tokenizer.json: {problem}. Nobody's tokenizer needs that; take one that you trust.")


def steps(part: _Part | None, name: str) -> Iterator[dict]:
    """The steps of a part, which may be sequences of sequences, as tokenizer.json describes them."""
    if part is None:
        return
    waiting = [json.loads(part.__getstate__())]
    while waiting:
        step = waiting.pop()
        if step["type"] == "Sequence":
            waiting += reversed(step[name])
        else:
            yield step


def _product(steps: Iterator[dict]) -> float:
    """Characters that one may become in all steps together."""
    total = 1.0
    in_a_row = 1.0  # of steps in _UNICODE
    for step in steps:
        if step["type"] in _UNICODE:
            in_a_row = max(in_a_row, 2.0 * _UNICODE[step["type"]])
            continue
        total = min(total * in_a_row * _of_step(step), 1e300)
        in_a_row = 1.0
    return total * in_a_row


def _of_step(step: dict) -> float:
    kind = step["type"]
    if kind == "Replace":
        pattern = step["pattern"].get("String")
        size = len(step["content"])
        return max(1.0, size / len(pattern)) if pattern else 1.0 + size  # a regex may match between characters
    if kind == "Prepend":
        return 1.0 + len(step["prepend"])
    if kind == "Precompiled":
        return max(1.0, _longest_replacement(step["precompiled_charsmap"]))
    return 1.0 if kind in _SHRINKING else float(_STEPS.get(kind, HARMLESS))


def _longest_replacement(charsmap: str) -> int:
    """Characters of the longest replacement in the compiled rules of SentencePiece: a trie, then texts ending in 0."""
    data = base64.b64decode(charsmap)
    (trie_size,) = struct.unpack("<I", data[:4])
    return max(len(text.decode(errors="replace")) for text in data[4 + trie_size :].split(b"\0"))


def _check_template(steps: Iterator[dict]) -> None:
    """Check the number of special tokens around a text, and how often the text is repeated."""
    num_texts = 1
    num_special = 0
    for step in steps:
        if step["type"] == "TemplateProcessing":
            pieces = [piece["SpecialToken"]["id"] for piece in step["single"] if "SpecialToken" in piece]
            repeats = len(step["single"]) - len(pieces)
            added = sum(len(step["special_tokens"][name]["ids"]) for name in pieces)
        else:
            repeats = 1
            added = 2  # BertProcessing, RobertaProcessing
        num_texts *= repeats
        num_special = num_special * repeats + added
        if num_texts > 1 or num_special > MAX_TEMPLATE:
            raise _refused(f"has a template that repeats a text, or adds more than {MAX_TEMPLATE:,} special tokens")
