"""Text to token ids and back, exactly: characters, bytes or pieces of words.

The contract of every tokenizer:

    vocab_size         ids run from 0 to vocab_size - 1
    pad_id = 0, bos_id = 1, eos_id = 2; the ids of text begin at 3: no text, not even "<eos>", becomes a special id
    encode(text)       -> int32 [T], without bos or eos
    decode(ids)        -> str, special ids left out; decode(encode(text)) == text
    to_dict()          -> what `tokenizer_from_dict` makes an equal tokenizer from, also by way of JSON
"""

from transformer_jax.tokenizers.base import (
    BOS_ID,
    EOS_ID,
    FIRST_TEXT_ID,
    PAD_ID,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
)
from transformer_jax.tokenizers.registry import TOKENIZERS, PairTokenizer, tokenizer_from_dict, train_tokenizer
from transformer_jax.tokenizers.subwords import BPETokenizer, UnigramTokenizer, WordPieceTokenizer

__all__ = [
    "BOS_ID",
    "BPETokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "EOS_ID",
    "FIRST_TEXT_ID",
    "PAD_ID",
    "PairTokenizer",
    "TOKENIZERS",
    "Tokenizer",
    "UnigramTokenizer",
    "WordPieceTokenizer",
    "tokenizer_from_dict",
    "train_tokenizer",
]
