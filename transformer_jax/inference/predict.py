"""Batched prediction: classify and tag texts. Their log-probabilities: score.py.

Texts of similar length are read together. Results come in the order of the texts.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.errors import UserError, warn
from transformer_jax.inference.adapter_names import AdapterNames, choose_adapters, of_texts
from transformer_jax.inference.batching import batch_by_length, check_ids, pad_batch, padded_length, truncate
from transformer_jax.inference.forward import logits
from transformer_jax.inference.texts import sentence_list, text_list
from transformer_jax.models import SequenceClassifier, TokenTagger
from transformer_jax.run import Run
from transformer_jax.tokenizers import Tokenizer

NO_TOKENS = -1  # in place of the index of a word's first token
THRESHOLD = 0.5  # probability above which a text has a label, where it can have several
Progress = Callable[[int], None] | None  # called with the number of texts done


class Classification(NamedTuple):
    """Most likely label of a text, and the probabilities of all labels."""

    label: str
    probability: float
    probabilities: np.ndarray  # float32, of all labels in the order of run.labels


class MultiLabelClassification(NamedTuple):
    """Labels of a text that can have any number of them, and the probabilities of all labels."""

    labels: dict[str, float]  # probability of each label that is above THRESHOLD, in the order of run.labels
    probabilities: np.ndarray  # float32, of all labels in the order of run.labels


Answer = Classification | MultiLabelClassification | float | list[float]


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {  # of the logits, by problem type
    "single_label_classification": jax.nn.softmax,
    "multi_label_classification": jax.nn.sigmoid,
    "regression": lambda logits: logits,
}


@overload
def classify(  # type: ignore[overload-overlap]
    run: Run, texts: str, *, batch_size: int = 32, progress: Progress = None, adapter_names: AdapterNames = None
) -> Answer: ...
@overload
def classify(
    run: Run,
    texts: Sequence[str],
    *,
    batch_size: int = 32,
    progress: Progress = None,
    adapter_names: AdapterNames = None,
) -> list[Answer]: ...
def classify(
    run: Run,
    texts: str | Sequence[str],
    *,
    batch_size: int = 32,
    progress: Progress = None,
    adapter_names: AdapterNames = None,
) -> Answer | list[Answer]:
    """Classify a text, or each of several, as the problem type of the run says.

    A text longer than the context is cut, with a warning on stderr.

    Args:
      adapter_names: for a run with adapters by name: one for all texts, or one for each; "": none.
    Returns:
      The answer for a string, or a list of answers: a Classification; for a run with several labels a text, a
      MultiLabelClassification; for regression the number, or a list of numbers from a head of several. A head whose one
      output has no label, such as that of a cross-encoder, gives its probability.
    Raises:
      UserError: the run is no classifier, or has no tokenizer; texts of another type; an unknown adapter.
    """
    check_run(run, (SequenceClassifier,), batch_size)
    tokenizer = run.text_tokenizer
    max_len = run.encoder_context
    rows = [tokenizer.encode_whole(run.prepare(text)) for text in text_list("texts", texts)]
    rows = truncate("texts", rows, max_len)
    run = choose_adapters(run, adapter_names, len(rows))
    check_ids("texts", rows, tokenizer, run.config.encoder.vocab_size)
    outputs: list[np.ndarray] = [np.zeros(0)] * len(rows)
    for indices, tokens, is_token in text_batches(run, rows, batch_size, max_len, progress):
        batch = ACTIVATIONS[run.problem_type](logits(of_texts(run, indices, batch_size), tokens, is_token))
        for index, output in zip(indices, np.asarray(batch), strict=False):  # rows of padding come last
            outputs[index] = output
    answers = [_answer(run, output) for output in outputs]
    return answers[0] if isinstance(texts, str) else answers


def _answer(run: Run, output: np.ndarray) -> Answer:
    """Answer for a text from the activated outputs of the head, [num_classes]."""
    names = run.labels or tuple(map(str, range(len(output))))
    if run.problem_type == "single_label_classification":
        return Classification(names[np.argmax(output)], float(np.max(output)), output)
    numbers = [float(value) for value in output]
    if run.problem_type == "multi_label_classification" and (run.labels or len(output) > 1):
        labels = {name: p for name, p in zip(names, numbers, strict=True) if p > THRESHOLD}
        return MultiLabelClassification(labels, output)
    return numbers[0] if len(numbers) == 1 else numbers


@overload
def tag(  # type: ignore[overload-overlap]
    run: Run, sentences: str, *, batch_size: int = 32, progress: Progress = None, adapter_names: AdapterNames = None
) -> list[str]: ...
@overload
def tag(
    run: Run,
    sentences: Sequence[str | Sequence[str]],
    *,
    batch_size: int = 32,
    progress: Progress = None,
    adapter_names: AdapterNames = None,
) -> list[list[str]]: ...
def tag(
    run: Run,
    sentences: str | Sequence[str | Sequence[str]],
    *,
    batch_size: int = 32,
    progress: Progress = None,
    adapter_names: AdapterNames = None,
) -> list[str] | list[list[str]]:
    """Tag each word of a sentence, or of each of several.

    A string is one sentence, and is split at spaces. A list of strings is several sentences; so a sentence that is
    split into words already is a list of words in the list of sentences. For a run that tags characters, every
    character is a word. There are as many tags as words: those beyond the context, and those of which the tokenizer
    leaves no token, get the tag "O" if there is one, else the run's first. Warnings on stderr report their numbers.

    Args:
      adapter_names: for a run with adapters by name: one for all sentences, or one for each; "": none.
    Returns:
      The tags of a sentence that is given as a string, or a list of them for each sentence.
    Raises:
      UserError: the run is no TokenTagger, or has no tokenizer; sentences of another type; an unknown adapter.
    """
    check_run(run, (TokenTagger,), batch_size)
    tokenizer = run.text_tokenizer
    names = run.labels or tuple(map(str, range(run.model.num_tags)))
    tag_unread = "O" if "O" in names else names[0]
    words = [split_words(run, sentence) for sentence in sentence_list("sentences", sentences)]
    encoded = [encode_words(tokenizer, [run.prepare(word) for word in sentence], run.separator) for sentence in words]
    max_len = run.encoder_context
    if num_empty := sum(int(np.sum(starts == NO_TOKENS)) for _, starts in encoded):
        warn(f"{num_empty} of {sum(map(len, words))} words have no token, and get the tag {tag_unread!r:.80}.")
    rows = truncate("sentences", [tokens for tokens, _ in encoded], max_len)
    run = choose_adapters(run, adapter_names, len(rows))
    check_ids("sentences", rows, tokenizer, run.config.encoder.vocab_size)
    tags: list[list[str]] = [[]] * len(words)
    for indices, tokens, is_token in text_batches(run, rows, batch_size, max_len, progress):
        best = np.asarray(jnp.argmax(logits(of_texts(run, indices, batch_size), tokens, is_token), axis=-1))
        for row, index in enumerate(indices):
            starts = encoded[index][1]
            is_read = (starts != NO_TOKENS) & (starts < max_len)
            tags[index] = [
                names[best[row, start]] if known else tag_unread for start, known in zip(starts, is_read, strict=True)
            ]
    return tags[0] if isinstance(sentences, str) else tags


def split_words(run: Run, sentence: str | Sequence[str]) -> list[str]:
    """Split a sentence into the words that are tagged."""
    if not isinstance(sentence, str):
        return list(sentence)
    return sentence.split() if run.separator else list(sentence)


def encode_words(tokenizer: Tokenizer, words: Sequence[str], separator: str) -> tuple[np.ndarray, np.ndarray]:
    """Encode a sentence word by word: token ids int32 [T] with the special tokens, and the index of each word's first.

    Words are encoded with the separator before them, as they occur in a text. The index is NO_TOKENS for a word of
    which the tokenizer leaves nothing, such as an empty one or U+200B alone.
    """
    pieces = [tokenizer.encode_continuation(separator + word) for word in words]
    first, last = tokenizer.ends
    lengths = np.array([len(piece) for piece in pieces], int)
    starts = np.where(lengths > 0, len(first) + np.cumsum(lengths) - lengths, NO_TOKENS)
    return np.concatenate([first, *pieces, last]).astype(np.int32), starts


def check_run(run: Run, kinds: tuple[type, ...], batch_size: int) -> None:
    """Raise UserError for a run of another kind, and a batch size below 1."""
    if not isinstance(run.model, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(f"run: is a {type(run.model).__name__}, and this needs a {names}.")
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: must be at least 1.")


def text_batches(
    run: Run, rows: list[np.ndarray], batch_size: int, max_length: int, progress: Progress
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Indices of rows, and their tokens and is_token, [batch_size, T] each, T <= max_length."""
    num_done = 0
    for indices in batch_by_length([len(tokens) for tokens in rows], batch_size):
        yield indices, *pad_rows(run, [rows[index] for index in indices], batch_size, max_length)
        num_done += len(indices)
        if progress:
            progress(num_done)


def pad_rows(run: Run, rows: list[np.ndarray], num_rows: int, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and is_token of a batch, [num_rows, T] each, T <= max_length; its last rows are padding alone."""
    width = padded_length([len(row) for row in rows], max_length)
    return pad_batch(rows, width, run.generation_defaults.pad_id, num_rows=num_rows)
