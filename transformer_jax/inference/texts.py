"""Text arguments of the public functions: strings, or token ids; anything else is refused in one line."""

from collections.abc import Sequence

import numpy as np

from transformer_jax.errors import UserError
from transformer_jax.run import Run

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
