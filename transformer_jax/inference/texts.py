"""Text arguments of the public functions: one string, or a sequence of strings; another type is refused in one line."""

from collections.abc import Sequence

import numpy as np

from transformer_jax.errors import UserError


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
