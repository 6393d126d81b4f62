"""Text arguments of the public functions: strings, or token ids; anything else is refused in one line."""

from collections.abc import Sequence

import numpy as np

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError, choose
from transformer_jax.inference.batching import check_ids
from transformer_jax.models import GPT
from transformer_jax.run import Run
from transformer_jax.tokenizers import Tokenizer

Rows = np.ndarray | Sequence[Sequence[int] | np.ndarray]  # [B, T], or sequences of any lengths


def text_list(name: str, texts: object) -> list[str]:
    """List of the texts of an argument; one string is a list of one.

    Raises:
      UserError: neither a string nor a sequence of strings.
    """
    if isinstance(texts, str):
        return [texts]
    return [one_text(f"{name}[{i}]", text) for i, text in enumerate(_sequence(name, texts))]


def sentence_list(name: str, sentences: object) -> list[str | list[str]]:
    """List of the sentences of an argument, each a string or the list of its words; one string is a list of one.

    Raises:
      UserError: neither a string nor a sequence, or a sentence that is neither a string nor a sequence of strings.
    """
    if isinstance(sentences, str):
        return [sentences]
    return [
        sentence if isinstance(sentence, str) else text_list(f"{name}[{i}]", sentence)
        for i, sentence in enumerate(_sequence(name, sentences))
    ]


def one_text(name: str, text: object) -> str:
    """The text of an argument that is one string. Raises UserError for another type."""
    if not isinstance(text, str):
        raise UserError(f"{name}: must be a string, not of type {type(text).__name__}.")
    return text


def _sequence(name: str, values: object) -> Sequence[object]:
    """A sequence of texts: bytes and dicts are none, and a generator would be empty when it is read again."""
    if isinstance(values, bytes | bytearray | memoryview) or not isinstance(values, Sequence | np.ndarray):
        fix = " Take list(...) of it." if hasattr(values, "__iter__") and not isinstance(values, bytes | dict) else ""
        raise UserError(f"{name}: must be a string or a list of strings, not of type {type(values).__name__}.{fix}")
    if not isinstance(values, np.ndarray):
        return values
    if values.ndim != 1:
        raise UserError(f"{name}: must be a list of strings, not an array of shape {list(values.shape)}.")
    return list(values.tolist())


def check_tokens(run: Run, tokens: Rows, is_token: Rows | None = None) -> list[np.ndarray]:
    """Check token ids, and return each sequence int32 [T] without its padding."""
    if isinstance(tokens, str) or not isinstance(tokens, Sequence | np.ndarray):
        raise UserError(f"tokens: must be int [B, T] or a list of sequences, not of type {type(tokens).__name__}.")
    if is_token is not None and len(is_token) != len(tokens):
        raise UserError(f"is_token: {len(is_token)} sequences, and tokens has {len(tokens)}. Give a mask for each.")
    vocab_size = run.config.encoder.vocab_size
    rows = []
    for i, row in enumerate(tokens):
        ids = np.asarray(row)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise UserError(f"tokens: sequence {i} must be integers [T], not {ids.dtype} {list(ids.shape)}.")
        if is_token is not None:
            mask = np.asarray(is_token[i])
            if mask.shape != ids.shape or mask.dtype != bool:
                rule = f"must be bool [{len(ids)}] as its tokens, not {mask.dtype} {list(mask.shape)}"
                raise UserError(f"is_token: sequence {i} {rule}.")
            ids = ids[mask]
        if not ids.size:
            raise UserError(f"tokens: sequence {i} has no token. Give at least one.")
        if not (0 <= ids.min() and ids.max() < vocab_size):
            rule = f"must lie between 0 and {vocab_size - 1}, not between {ids.min()} and {ids.max()}"
            raise UserError(f"tokens: ids of sequence {i} {rule}.")
        rows.append(ids.astype(np.int32))
    return rows


def encode_text(run: Run, name: str, text: str) -> np.ndarray:
    """Token ids int32 [T] of one text as the model reads it in training; of the source, for a Seq2Seq.

    Raises:
      UserError: no string, an empty one, no tokenizer, more tokens than the context has room for.
    """
    tokenizer = run.text_tokenizer
    if not one_text(name, text):
        raise UserError(f"{name}='': has no tokens. Give at least one character.")
    if run.model.reads_source:
        tokens = tokenizer.encode_source(run.prepare(text))
    else:
        tokens = tokenizer.encode(text) if isinstance(run.model, GPT) else tokenizer.encode_whole(run.prepare(text))
    return _check_encoded(name, text, tokens, tokenizer.source, run.config.encoder)


def encode_target(run: Run, name: str, text: object) -> np.ndarray:
    """Token ids int32 [T] of a target as the decoder reads them: the start token first, no end token.

    Raises:
      UserError: as `encode_text`, but for an empty string.
    """
    start_id = run.generation_defaults.start_id
    tokens = run.text_tokenizer.encode_target(run.prepare(one_text(name, text))).tolist()
    if tokens[:1] == [start_id]:  # in some models the start token is the one that begins every text
        tokens = tokens[1:]
    if tokens and tokens[-1] in run.generation_defaults.eos_ids:
        tokens = tokens[:-1]
    return _check_encoded(name, text, [start_id, *tokens], run.text_tokenizer, run.config.decoder)


def _check_encoded(
    name: str, text: object, encoded: Sequence[int] | np.ndarray, tokenizer: Tokenizer, side: TransformerConfig
) -> np.ndarray:
    tokens = np.asarray(encoded, np.int32)
    if not tokens.size:
        raise UserError(f"{name}={text!r:.80}: has no tokens. Give at least one character.")
    if len(tokens) > side.max_len:
        raise UserError(f"{name}: {len(tokens)} tokens, and the model's context is {side.max_len}. Shorten it.")
    if tokens.min() < 0:
        raise UserError(f"{name}: has token {tokens.min()}, and no model knows ids below 0. Use ids from 0 on.")
    check_ids(name, [tokens], tokenizer, side.vocab_size)
    return tokens


def token_id(run: Run, name: str, token: str | int) -> int:
    """Index in the logits of a token: its id, a string that is one token, or a label of a classifier or tagger.

    Raises:
      UserError: an id outside the vocabulary, a string of no or of several tokens, an unknown label.
    """
    model = run.model
    num_labels = getattr(model, "num_classes", getattr(model, "num_tags", 0))
    size = num_labels or run.config.decoder.vocab_size
    if isinstance(token, str) and num_labels:
        return run.labels.index(choose(dict(zip(run.labels, run.labels, strict=True)), token, name))
    if isinstance(token, str):
        ids = run.text_tokenizer.encode_continuation(token)
        if len(ids) != 1:
            raise UserError(
                f"{name}={token!r:.80}: is {len(ids)} tokens, and must be one. Mind the space before a word."
            )
        token = int(ids[0])
    if isinstance(token, bool) or not isinstance(token, int | np.integer):
        raise UserError(f"{name}={token!r:.80}: must be a token, a string or an id.")
    if not 0 <= token < size:
        raise UserError(f"{name}={token}: must be an id between 0 and {size - 1}.")
    return int(token)


def check_position(position: int, length: int) -> int:
    """Check the index of a token in a text; -1 is the last. Raises UserError for one that is not there."""
    is_index = isinstance(position, int | np.integer) and not isinstance(position, bool)
    if not is_index or not -length <= position < length:
        raise UserError(
            f"position={position!r:.80}: must be an int from {-length} to {length - 1}; -1: the last token."
        )
    return int(position)
