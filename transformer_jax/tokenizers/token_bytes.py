"""Bytes of each token, and the settled part of a text that is still being generated."""

import functools
import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from transformer_jax.errors import UserError
from transformer_jax.tokenizers.base import FIRST_TEXT_ID, ByteTokenizer, CharTokenizer, Tokenizer
from transformer_jax.tokenizers.files import FileTokenizer, clean_up
from transformer_jax.tokenizers.json_tokenizer import JsonTokenizer
from transformer_jax.tokenizers.registry import PairTokenizer
from transformer_jax.tokenizers.sentencepiece_files import SentencePieceTokenizer
from transformer_jax.tokenizers.subwords import CONTINUATION, SubwordTokenizer

SPACE = "\u2581"  # how SentencePiece writes a space
_SPECIAL = (b"",) * FIRST_TEXT_ID
# Radford et al. 2019 write a byte as its Latin-1 character if that is printable, else as a character from 256 on.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_UNPRINTABLE = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + i): byte for i, byte in enumerate(_UNPRINTABLE)}


@functools.lru_cache(maxsize=8)
def token_bytes(tokenizer: Tokenizer) -> tuple[bytes, ...]:
    """Return the bytes of each id, b"" for special ids. The bytes of a text are those of its tokens, concatenated.

    If a tokenizer marks the start of words, the space before a word belongs to its token; `decode` omits it for the
    first token of a text.

    Raises:
      UserError: a tokenizer of an unknown kind, or whose tokens stand for different bytes in different contexts.
    """
    if tokenizer.kind not in _BYTES_OF_KIND:
        known = ", ".join(_BYTES_OF_KIND)
        raise UserError(f"tokenizer.kind={tokenizer.kind!r}: the bytes of its tokens are not known. Known: {known}.")
    return tuple(_BYTES_OF_KIND[tokenizer.kind](tokenizer))


def _char(tokenizer: CharTokenizer) -> tuple[bytes, ...]:
    return (*_SPECIAL, *(character.encode("utf-8", "surrogatepass") for character in tokenizer.learned))


def _byte(tokenizer: ByteTokenizer) -> tuple[bytes, ...]:
    return (*_SPECIAL, *(bytes([byte]) for byte in range(256)))


def _subwords(tokenizer: SubwordTokenizer) -> tuple[bytes, ...]:
    return (*_SPECIAL, *map(_continued, tokenizer.pieces()))


def _continued(piece: str) -> bytes:
    return _byte_level(piece.removeprefix(CONTINUATION))


def _utf8(piece: str) -> bytes:
    return piece.encode()


def _byte_level(piece: str) -> bytes:
    return bytes(BYTE_OF[character] for character in piece)


def _json(tokenizer: JsonTokenizer) -> Iterator[bytes]:
    kinds = {step["type"] for step in tokenizer.decoder_steps()}
    if kinds == {"ByteLevel"}:
        bytes_of = _byte_level
    elif kinds == {"ByteLevel", "Replace"}:  # a WordPiece of ours: pieces inside of a word have a prefix
        bytes_of = _continued
    elif kinds == {"Fuse"}:
        bytes_of = _utf8
    elif kinds <= {"Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"} and kinds & {"Metaspace", "Replace"}:
        bytes_of = _metaspace
    else:
        raise UserError(f"tokenizer.json: the bytes of its tokens are not known; its decoder is {sorted(kinds)}.")
    is_special = tokenizer.added_tokens()
    for piece in tokenizer.pieces():
        if piece is None or is_special.get(piece):
            yield b""
        elif piece in is_special:  # an added token that is text is spelled as it is
            yield piece.encode()
        else:
            yield bytes_of(piece)


def _metaspace(piece: str) -> bytes:
    byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
    return bytes.fromhex(byte[1]) if byte else piece.replace(SPACE, " ").encode()


def _sentencepiece(tokenizer: SentencePieceTokenizer) -> Iterator[bytes]:
    return (b"" if piece is None else _metaspace(piece) for piece in tokenizer.pieces())


def _pair(tokenizer: PairTokenizer) -> tuple[bytes, ...]:
    return token_bytes(tokenizer.target)


_BYTES_OF_KIND: dict[str, Callable[..., Iterable[bytes]]] = {
    "char": _char,
    "byte": _byte,
    "bpe": _subwords,
    "wordpiece": _subwords,
    "unigram": _subwords,
    **dict.fromkeys(("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model"), _json),
    "sentencepiece": _sentencepiece,
    "pair": _pair,
}


def settled_text(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """Return the part of `decode(ids)` that stays the same whatever ids follow: never a piece of a character.

    Incomplete bytes of a character decode to U+FFFD at the end, which is cut off. With byte fallback, one wrong byte
    makes all neighbouring bytes undecodable, so that trailing bytes wait for the tokens after them.
    """
    ids = np.asarray(ids, np.int64)
    if unsettled := _unsettled_ids(tokenizer):
        while len(ids) and int(ids[-1]) in unsettled:
            ids = ids[:-1]
    if isinstance(tokenizer, FileTokenizer) and tokenizer.cleans_up:
        return clean_up(_kept_apart(tokenizer.decode_raw(ids).rstrip("\ufffd")))
    return tokenizer.decode(ids).rstrip("\ufffd")


def _kept_apart(text: str) -> str:
    """The start of a text whose cleaned-up form does not depend on what follows: no pattern spans its end."""
    end = len(text)
    i = max(0, end - 3)
    while i < end:  # a pattern begins with a space and has at most four characters
        if text[i] == " " and text[i + 1 : i + 2] in ("", *".?!,'n "):
            end = i
            i = max(0, end - 3)
        else:
            i += 1
    return text[:end]


@functools.lru_cache(maxsize=8)
def _unsettled_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of byte-fallback tokens, and of special tokens, which do not separate bytes; empty without byte fallback."""
    if not isinstance(tokenizer, JsonTokenizer):
        return frozenset()
    if "ByteFallback" not in {step["type"] for step in tokenizer.decoder_steps()}:
        return frozenset()
    is_byte = [re.fullmatch(r"<0x[0-9A-F]{2}>", piece or "") is not None for piece in tokenizer.pieces()]
    return frozenset(i for i, data in enumerate(token_bytes(tokenizer)) if is_byte[i] or not data)
