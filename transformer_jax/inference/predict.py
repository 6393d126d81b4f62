"""Batched prediction: classify, tag and score texts.

Texts of similar length are read together. Results come in the order of the texts.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.errors import UserError, warn
from transformer_jax.inference.batching import batch_by_length, check_ids, pad_batch, padded_length, truncate
from transformer_jax.inference.forward import logits
from transformer_jax.inference.texts import sentence_list, text_list
from transformer_jax.models import GPT, Seq2Seq, SequenceClassifier, TokenTagger
from transformer_jax.run import Run
from transformer_jax.tokenizers import Tokenizer

NO_TOKENS = -1  # in place of the index of a word's first token
THRESHOLD = 0.5  # probability above which a text has a label, where it can have several
MAX_LOGITS = 2**26  # logits of a batch when every token has its own: 256 MB
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


class Likelihood(NamedTuple):
    """Log-probability of a text."""

    log_probability: float  # natural, of all predicted tokens together
    num_tokens: int  # number of predicted tokens

    @property
    def perplexity(self) -> float:
        """exp(-log_probability / num_tokens)."""
        return perplexity(-self.log_probability / max(self.num_tokens, 1))


def perplexity(nats_per_token: float) -> float:
    """exp(loss): the number of equally likely tokens that would be as hard to predict. Capped at exp(700)."""
    return math.exp(min(nats_per_token, 700.0))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {  # of the logits, by problem type
    "single_label_classification": jax.nn.softmax,
    "multi_label_classification": jax.nn.sigmoid,
    "regression": lambda logits: logits,
}


@overload
def classify(run: Run, texts: str, *, batch_size: int = 32, progress: Progress = None) -> Answer: ...  # type: ignore[overload-overlap]
@overload
def classify(run: Run, texts: Sequence[str], *, batch_size: int = 32, progress: Progress = None) -> list[Answer]: ...
def classify(
    run: Run, texts: str | Sequence[str], *, batch_size: int = 32, progress: Progress = None
) -> Answer | list[Answer]:
    """Classify a text, or each of several, as the problem type of the run says.

    A text longer than the context is cut, with a warning on stderr.

    Returns:
      The answer for a string, or a list of answers: a Classification; for a run with several labels a text, a
      MultiLabelClassification; for regression the number, or a list of numbers from a head of several. A head whose one
      output has no label, such as that of a cross-encoder, gives its probability.
    Raises:
      UserError: the run is no classifier, or has no tokenizer; texts of another type.
    """
    _check_run(run, (SequenceClassifier,), batch_size)
    tokenizer = run.text_tokenizer
    max_len = run.config.encoder.max_len
    rows = [tokenizer.encode_whole(run.prepare(text)) for text in text_list("texts", texts)]
    rows = truncate("texts", rows, max_len)
    check_ids("texts", rows, tokenizer, run.config.encoder.vocab_size)
    outputs: list[np.ndarray] = [np.zeros(0)] * len(rows)
    for indices, tokens, is_token in _batches(run, rows, batch_size, max_len, progress):
        batch = ACTIVATIONS[run.problem_type](logits(run, tokens, is_token))
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
def tag(run: Run, sentences: str, *, batch_size: int = 32, progress: Progress = None) -> list[str]: ...  # type: ignore[overload-overlap]
@overload
def tag(
    run: Run, sentences: Sequence[str | Sequence[str]], *, batch_size: int = 32, progress: Progress = None
) -> list[list[str]]: ...
def tag(
    run: Run, sentences: str | Sequence[str | Sequence[str]], *, batch_size: int = 32, progress: Progress = None
) -> list[str] | list[list[str]]:
    """Tag each word of a sentence, or of each of several.

    A string is one sentence, and is split at spaces. A list of strings is several sentences; so a sentence that is
    split into words already is a list of words in the list of sentences. For a run that tags characters, every
    character is a word. There are as many tags as words: those beyond the context, and those of which the tokenizer
    leaves no token, get the tag "O" if there is one, else the run's first. Warnings on stderr report their numbers.

    Returns:
      The tags of a sentence that is given as a string, or a list of them for each sentence.
    Raises:
      UserError: the run is no TokenTagger, or has no tokenizer; sentences of another type.
    """
    _check_run(run, (TokenTagger,), batch_size)
    tokenizer = run.text_tokenizer
    names = run.labels or tuple(map(str, range(run.model.num_tags)))
    tag_unread = "O" if "O" in names else names[0]
    words = [split_words(run, sentence) for sentence in sentence_list("sentences", sentences)]
    encoded = [encode_words(tokenizer, [run.prepare(word) for word in sentence], run.separator) for sentence in words]
    max_len = run.config.encoder.max_len
    if num_empty := sum(int(np.sum(starts == NO_TOKENS)) for _, starts in encoded):
        warn(f"{num_empty} of {sum(map(len, words))} words have no token, and get the tag {tag_unread!r:.80}.")
    rows = truncate("sentences", [tokens for tokens, _ in encoded], max_len)
    check_ids("sentences", rows, tokenizer, run.config.encoder.vocab_size)
    tags: list[list[str]] = [[]] * len(words)
    for indices, tokens, is_token in _batches(run, rows, batch_size, max_len, progress):
        best = np.asarray(jnp.argmax(logits(run, tokens, is_token), axis=-1))
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


@overload
def score(  # type: ignore[overload-overlap]
    run: Run, texts: str, targets: str | None = None, *, batch_size: int = 32, progress: Progress = None
) -> Likelihood: ...
@overload
def score(
    run: Run,
    texts: Sequence[str],
    targets: Sequence[str] | None = None,
    *,
    batch_size: int = 32,
    progress: Progress = None,
) -> list[Likelihood]: ...
def score(
    run: Run,
    texts: str | Sequence[str],
    targets: str | Sequence[str] | None = None,
    *,
    batch_size: int = 32,
    progress: Progress = None,
) -> Likelihood | list[Likelihood]:
    """Log-probability of a text, or of each of several; for a Seq2Seq, of each target given its source, with its end.

    A GPT predicts every token of a text from those before it; the first token is given. A text longer than the context
    is read in consecutive pieces. A source or target longer than the context is cut, with a warning on stderr.

    Returns:
      One Likelihood for a string, or a list of them.
    Raises:
      UserError: the run is neither a GPT nor a Seq2Seq, or has no tokenizer; texts of another type; no targets, or not
        as many as texts, or a list of them for one text.
    """
    _check_run(run, (GPT, Seq2Seq), batch_size)
    is_seq2seq = run.model.reads_source
    text_rows = text_list("texts", texts)
    target_rows = [] if targets is None else text_list("targets", targets)
    if is_seq2seq != (targets is not None) or (is_seq2seq and len(target_rows) != len(text_rows)):
        raise UserError("targets: a Seq2Seq needs one for each text, and a GPT takes none.")
    if is_seq2seq and isinstance(texts, str) != isinstance(targets, str):
        raise UserError("targets: must be a string where texts is one, and else a list.")
    decoder = run.config.decoder
    sources = _encode_sources(run, text_rows) if is_seq2seq else []
    pieces = _target_pieces(run, target_rows) if is_seq2seq else _text_pieces(run, text_rows)
    totals = np.zeros((len(text_rows), 2))  # log-probability and number of tokens
    longest = max([1, *(len(piece) for _, piece in pieces)])  # an empty text has no token
    batch_size = max(1, min(batch_size, MAX_LOGITS // (longest * decoder.vocab_size)))
    rows = [piece for _, piece in pieces]
    for indices, tokens, is_token in _batches(run, rows, batch_size, decoder.max_len + 1, progress):
        text_indices = [pieces[index][0] for index in indices]
        inputs = tokens[:, :-1]
        is_input = is_token[:, :-1]
        if is_seq2seq:
            batch = [sources[i] for i in text_indices]
            source, is_source = _pad(run, batch, batch_size, run.config.encoder.max_len)
            outputs = logits(run, source, is_source, inputs, target_is_token=is_input)
        else:
            outputs = logits(run, inputs, is_input)
        log_probs = np.asarray(token_log_probs(outputs, tokens[:, 1:]))
        for row, i in enumerate(text_indices):
            is_target = is_token[row, 1:]
            totals[i] += log_probs[row][is_target].sum(), is_target.sum()
    scores = [Likelihood(float(total), int(number)) for total, number in totals]
    return scores[0] if isinstance(texts, str) else scores


def _encode_sources(run: Run, texts: Sequence[str]) -> list[np.ndarray]:
    tokenizer = run.text_tokenizer
    rows = [tokenizer.encode_source(run.prepare(text)) for text in texts]
    check_ids("texts", rows, tokenizer.source, run.config.encoder.vocab_size)
    return truncate("sources", rows, run.config.encoder.max_len, keeps_end=True)


def _target_pieces(run: Run, targets: Sequence[str]) -> list[tuple[int, np.ndarray]]:
    """Index of each target, and its tokens after the token that starts a target."""
    tokenizer = run.text_tokenizer
    rows = truncate("targets", [tokenizer.encode_target(run.prepare(t)) for t in targets], run.config.decoder.max_len)
    check_ids("targets", rows, tokenizer, run.config.decoder.vocab_size)
    return [(i, np.insert(row, 0, run.generation_defaults.start_id)) for i, row in enumerate(rows)]


def _text_pieces(run: Run, texts: Sequence[str]) -> list[tuple[int, np.ndarray]]:
    """Index of the text and tokens of each piece. A piece begins with the last token of the piece before it."""
    max_len = run.config.decoder.max_len
    tokenizer = run.text_tokenizer
    rows = [tokenizer.encode(text) for text in texts]
    check_ids("texts", rows, tokenizer, run.config.decoder.vocab_size)
    return [
        (i, row[first : first + max_len + 1])
        for i, row in enumerate(rows)
        for first in range(0, max(1, len(row) - 1), max_len)
    ]


def _check_run(run: Run, kinds: tuple[type, ...], batch_size: int) -> None:
    if not isinstance(run.model, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(f"run: is a {type(run.model).__name__}, and this needs a {names}.")
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: must be at least 1.")


def _batches(
    run: Run, rows: list[np.ndarray], batch_size: int, max_length: int, progress: Progress
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Indices of rows, and their tokens and is_token, [batch_size, T] each, T <= max_length."""
    num_done = 0
    for indices in batch_by_length([len(tokens) for tokens in rows], batch_size):
        yield indices, *_pad(run, [rows[index] for index in indices], batch_size, max_length)
        num_done += len(indices)
        if progress:
            progress(num_done)


def _pad(run: Run, rows: list[np.ndarray], num_rows: int, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    width = padded_length([len(row) for row in rows], max_length)
    return pad_batch(rows, width, run.generation_defaults.pad_id, num_rows=num_rows)


@jax.jit
def token_log_probs(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Log-probability of each token, float32 [B, T], from logits [B, T, V] and token ids [B, T]."""
    chosen = jnp.take_along_axis(logits, tokens[:, :, None], axis=2)[:, :, 0]
    return chosen - jax.nn.logsumexp(logits, axis=2)
