"""Batched prediction: classify, tag and score texts.

Texts of similar length are read together. Results come in the order of the texts.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.errors import UserError, warn
from transformer_jax.inference.batching import batch_by_length, check_ids, pad_batch, padded_length, truncate
from transformer_jax.inference.forward import logits
from transformer_jax.models import GPT, Regressor, Seq2Seq, SequenceClassifier, TokenTagger
from transformer_jax.run import Run
from transformer_jax.tokenizers import Tokenizer

NO_TOKENS = -1  # in place of the index of a word's first token
MAX_LOGITS = 2**26  # logits of a batch when every token has its own: 256 MB
Progress = Callable[[int], None] | None  # called with the number of texts done


class Classification(NamedTuple):
    """Most likely label of a text, and the probabilities of all labels."""

    label: str
    probability: float
    probabilities: np.ndarray  # float32, of all labels in the order of run.labels


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


def classify(
    run: Run, texts: Sequence[str], *, batch_size: int = 32, progress: Progress = None
) -> list[Classification] | list[float]:
    """Classify each text; a Regressor predicts a number for each.

    A text longer than the context is cut, with a warning on stderr.

    Raises:
      UserError: the run is neither a classifier nor a Regressor, or has no tokenizer.
    """
    _check_run(run, (SequenceClassifier, Regressor), batch_size)
    tokenizer = run.text_tokenizer
    max_len = run.config.encoder.max_len
    rows = truncate("texts", [tokenizer.encode_whole(run.prepare(text)) for text in texts], max_len)
    check_ids("texts", rows, tokenizer, run.config.encoder.vocab_size)
    outputs: list[np.ndarray] = [np.zeros(0)] * len(texts)
    for indices, tokens, is_token in _batches(run, rows, batch_size, max_len, progress):
        batch = logits(run, tokens, is_token)
        if not isinstance(run.model, Regressor):
            batch = jax.nn.softmax(batch)
        for index, output in zip(indices, np.asarray(batch), strict=False):  # rows of padding come last
            outputs[index] = output
    if isinstance(run.model, Regressor):
        return [float(value) for value in outputs]
    names = run.labels or tuple(map(str, range(run.model.num_classes)))
    return [Classification(names[np.argmax(p)], float(np.max(p)), p) for p in outputs]


def tag(
    run: Run, sentences: Sequence[str | Sequence[str]], *, batch_size: int = 32, progress: Progress = None
) -> list[list[str]]:
    """Tag each word of each sentence, which is a list of words, or a text that is split at spaces.

    For a run that tags characters, every character is a word. There are as many tags as words: those beyond the
    context, and those of which the tokenizer leaves no token, get the tag "O" if there is one, else the run's first.
    Warnings on stderr report how many there are.

    Raises:
      UserError: the run is no TokenTagger, or has no tokenizer.
    """
    _check_run(run, (TokenTagger,), batch_size)
    tokenizer = run.text_tokenizer
    names = run.labels or tuple(map(str, range(run.model.num_tags)))
    tag_unread = "O" if "O" in names else names[0]
    words = [split_words(run, sentence) for sentence in sentences]
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
    return tags


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


def score(
    run: Run,
    texts: Sequence[str],
    targets: Sequence[str] | None = None,
    *,
    batch_size: int = 32,
    progress: Progress = None,
) -> list[Likelihood]:
    """Log-probability of each text; for a Seq2Seq, of each target given its source, end token included.

    A GPT predicts every token of a text from those before it; the first token is given. A text longer than the context
    is read in consecutive pieces. A source or target longer than the context is cut, with a warning on stderr.

    Raises:
      UserError: the run is neither a GPT nor a Seq2Seq, or has no tokenizer; no targets, or not as many as texts.
    """
    _check_run(run, (GPT, Seq2Seq), batch_size)
    is_seq2seq = run.model.reads_source
    if is_seq2seq != (targets is not None) or (targets is not None and len(targets) != len(texts)):
        raise UserError("targets: a Seq2Seq needs one for each text, and a GPT takes none.")
    decoder = run.config.decoder
    sources = _encode_sources(run, texts) if is_seq2seq else []
    pieces = _text_pieces(run, texts) if targets is None else _target_pieces(run, targets)
    totals = np.zeros((len(texts), 2))  # log-probability and number of tokens
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
    return [Likelihood(float(total), int(number)) for total, number in totals]


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
