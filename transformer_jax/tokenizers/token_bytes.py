"""What tokens are made of: the bytes of each, and the part of a text that no later token changes."""

import functools
import json
import re
from collections.abc import Iterable

import numpy as np

from transformer_jax.errors import UserError
from transformer_jax.tokenizers.base import FIRST_TEXT_ID, Tokenizer
from transformer_jax.tokenizers.subwords import INSIDE

SPACE = "\u2581"  # how SentencePiece writes a space
_NONE = (b"",) * FIRST_TEXT_ID
# Radford et al. 2019 write a byte as its Latin-1 character if that can be seen, and else as one of those from 256 on.
_SEEN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_UNSEEN = [byte for byte in range(256) if byte not in _SEEN]
BYTE_OF = {chr(byte): byte for byte in _SEEN} | {chr(256 + i): byte for i, byte in enumerate(_UNSEEN)}


@functools.lru_cache(maxsize=8)
def token_bytes(tokenizer: Tokenizer) -> tuple[bytes, ...]:
    """The bytes of each id, b"" for those that are no text. A text's are those of its tokens, one after the other.

    Where a tokenizer marks the start of words, the space before a word is part of it; of a text's very first token
    `decode` leaves it out.

    Raises:
      UserError: a tokenizer whose tokens are not the same bytes everywhere, or that is of an unknown kind.
    """
    if tokenizer.kind not in _OF_KIND:
        known = ", ".join(_OF_KIND)
        raise UserError(f"tokenizer.kind={tokenizer.kind!r}: the bytes of its tokens are not known. Known: {known}.")
    return tuple(_OF_KIND[tokenizer.kind](tokenizer))


def _char(tokenizer):
    return (*_NONE, *(character.encode("utf-8", "surrogatepass") for character in tokenizer.learned))


def _byte(tokenizer):
    return (*_NONE, *(bytes([byte]) for byte in range(256)))


def _subwords(tokenizer):
    vocabulary = tokenizer._model.get_vocab()
    pieces = sorted(vocabulary, key=vocabulary.get)
    return (*_NONE, *(_latin(piece.removeprefix(INSIDE)) for piece in pieces))


def _latin(piece):
    return bytes(BYTE_OF[character] for character in piece)


def _json(tokenizer):
    settings = json.loads(tokenizer._parts.to_str())
    steps = _decoders(settings["decoder"])
    kinds = {step["type"] for step in steps}
    if kinds == {"ByteLevel"}:
        plain = _latin
    elif kinds <= {"Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"} and kinds & {"Metaspace", "Replace"}:
        plain = _marked
    else:
        raise UserError(f"tokenizer.json: the bytes of its tokens are not known; its decoder is {sorted(kinds)}.")
    special = {token["content"]: token["special"] for token in settings["added_tokens"]}
    for i in range(tokenizer.vocab_size):
        piece = tokenizer._parts.id_to_token(i)
        if piece is None or special.get(piece):
            yield b""
        elif piece in special:  # added, but text: it stands for itself
            yield piece.encode()
        else:
            yield plain(piece)


def _decoders(decoder):
    if decoder is None:
        return [{"type": "none"}]
    return decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]


def _marked(piece):
    byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
    return bytes.fromhex(byte[1]) if byte else piece.replace(SPACE, " ").encode()


def _sentencepiece(tokenizer):
    parts = tokenizer._parts
    for i in range(tokenizer.vocab_size):
        is_text = i < parts.vocab_size() and not (parts.is_control(i) or parts.is_unknown(i) or parts.is_unused(i))
        yield _marked(parts.id_to_piece(i)) if is_text else b""


_OF_KIND = {
    "char": _char,
    "byte": _byte,
    "bpe": _subwords,
    "wordpiece": _subwords,
    "unigram": _subwords,
    "tokenizer.json": _json,
    "sentencepiece": _sentencepiece,
    "pair": lambda tokenizer: token_bytes(tokenizer.target),
}


def settled_text(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The part of `decode(ids)` that is the same whatever ids follow: never a piece of a character.

    Bytes that are no character yet decode to U+FFFD at the end. Where bytes are tokens of their own among others
    (byte fallback), one that is wrong spoils all those beside it, so that they wait for what comes after.
    """
    ids = np.asarray(ids, np.int64)
    if unsettled := _unsettled(tokenizer):
        while len(ids) and int(ids[-1]) in unsettled:
            ids = ids[:-1]
    return tokenizer.decode(ids).rstrip("\ufffd")


@functools.lru_cache(maxsize=8)
def _unsettled(tokenizer):
    """The ids of bytes, and those of no text, which do not part them; nothing where bytes wait for no others."""
    if tokenizer.kind != "tokenizer.json":
        return frozenset()
    if "ByteFallback" not in {step["type"] for step in _decoders(json.loads(tokenizer._parts.to_str())["decoder"])}:
        return frozenset()
    pieces = map(tokenizer._parts.id_to_token, range(tokenizer.vocab_size))
    is_byte = [re.fullmatch(r"<0x[0-9A-F]{2}>", piece or "") is not None for piece in pieces]
    return frozenset(i for i, data in enumerate(token_bytes(tokenizer)) if is_byte[i] or not data)
