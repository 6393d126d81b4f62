"""Tokenizers: text to token ids and back, exactly; characters, bytes or subwords.

The contract of every tokenizer:

    vocab_size         ids are 0 to vocab_size - 1
    pad_id = 0, bos_id = 1, eos_id = 2; ids of text start at 3: no text, not even "<eos>", becomes a special id
    encode(text)       -> int32 [T], without bos and eos
    decode(ids)        -> str, special ids skipped; decode(encode(text)) == text
    to_dict()          -> plain data for `tokenizer_from_dict`, which returns an equal tokenizer, also by way of JSON

A tokenizer read from the files of a pre-trained model (pretrained.py) has the special ids of that model, and its
`encode` adds the special tokens that the model expects.
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
