"""What a run says of texts: their labels, the tags of their words, how likely they are.

All read texts of about one length together, and answer in the order in which they were given.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from transformer_jax.errors import UserError
from transformer_jax.models import GPT, Regressor, Seq2Seq, SequenceClassifier, TokenTagger
from transformer_jax.run import Run, logits
from transformer_jax.tokenizers import Tokenizer

LENGTH_MULTIPLE = 16  # lengths are padded to multiples of it, so that few are compiled
MOST_LOGITS = 2**26  # of a batch, when every token has its own: 256 MB
Progress = Callable[[int], None] | None  # is told how many texts are done


class Label(NamedTuple):
    """What a classifier says of a text."""

    label: str
    probability: float
    probabilities: np.ndarray  # float32, of all labels in the order of run.labels


class Likelihood(NamedTuple):
    """How likely a text is."""

    log_probability: float  # natural, of all its tokens together
    num_tokens: int  # that were guessed

    @property
    def perplexity(self) -> float:
        """exp(-log_probability / num_tokens): so many equally likely tokens would be as hard to guess."""
        return float(np.exp(min(-self.log_probability / max(self.num_tokens, 1), 700.0)))


def classify(
    run: Run, texts: Sequence[str], *, batch_size: int = 32, progress: Progress = None
) -> list[Label] | list[float]:
    """The likeliest label of each text; of a Regressor, its number.

    A text that is longer than the context is cut, with a warning on stderr.

    Raises:
      UserError: the run is neither, or came without a tokenizer.
    """
    _check(run, (SequenceClassifier, Regressor), batch_size)
    names = run.labels or tuple(map(str, range(getattr(run.model, "num_classes", 0))))
    encoded = fit("texts", [run.tokenizer.encode_whole(text) for text in texts], run.config.max_len)
    answers: list[Any] = [None] * len(texts)
    for rows, tokens, is_token in _batches(run, encoded, batch_size, run.config.max_len, progress):
        outputs = logits(run, tokens, is_token)
        if isinstance(run.model, Regressor):
            found = [float(value) for value in outputs]
        else:
            found = [Label(names[np.argmax(p)], float(np.max(p)), p) for p in np.asarray(jax.nn.softmax(outputs))]
        for row, answer in zip(rows, found, strict=False):
            answers[row] = answer
    return answers


def tag(
    run: Run, sentences: Sequence[Sequence[str]], *, batch_size: int = 32, progress: Progress = None
) -> list[list[str]]:
    """A tag for each word of each sentence, which is a list of words, or a text that is cut at its spaces.

    A run that tags characters takes each for a word. Words beyond the context get the tag "O" if there is one, else
    the run's first; a warning on stderr tells how many sentences have such words.

    Raises:
      UserError: the run is no TokenTagger, or came without a tokenizer.
    """
    _check(run, (TokenTagger,), batch_size)
    names = run.labels or tuple(map(str, range(run.model.num_tags)))
    beyond = "O" if "O" in names else names[0]
    words = [split_words(run, sentence) for sentence in sentences]
    encoded = [encode_words(run.tokenizer, sentence, run.separator) for sentence in words]
    tags: list[list[str]] = [[]] * len(words)
    max_len = run.config.max_len
    texts = fit("sentences", [tokens for tokens, _ in encoded], max_len)
    for rows, tokens, is_token in _batches(run, texts, batch_size, max_len, progress):
        best = np.asarray(jnp.argmax(logits(run, tokens, is_token), axis=-1))
        for place, row in enumerate(rows):
            starts = encoded[row][1]
            found = [names[i] for i in best[place][starts[starts < max_len]]]
            tags[row] = found + [beyond] * (len(words[row]) - len(found))
    return tags


def split_words(run: Run, sentence: str | Sequence[str]) -> list[str]:
    """The words of a sentence that are tagged."""
    if not isinstance(sentence, str):
        return list(sentence)
    return sentence.split() if run.separator else list(sentence)


def encode_words(tokenizer: Tokenizer, words: Sequence[str], separator: str) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of a sentence that stands alone, int32 [T], and the place of each word's first one.

    Words are encoded with the separator before them, as they stand in a text.
    """
    pieces = [tokenizer.encode_piece(separator + word) for word in words]
    first, last = tokenizer.ends
    starts = np.cumsum([len(first), *map(len, pieces)])[:-1]
    return np.concatenate([first, *pieces, last]).astype(np.int32), starts


def score(
    run: Run,
    texts: Sequence[str],
    targets: Sequence[str] | None = None,
    *,
    batch_size: int = 32,
    progress: Progress = None,
) -> list[Likelihood]:
    """How likely each text is; with a Seq2Seq, each target beside its source, its end included.

    Of a GPT's text every token is guessed from those before it, and the first is given. One that is longer than the
    context is read in pieces that follow each other; a source or a target that is, is cut, with a warning on stderr.

    Raises:
      UserError: the run is neither, or came without a tokenizer; no targets, or not as many as texts.
    """
    _check(run, (GPT, Seq2Seq), batch_size)
    is_seq2seq = isinstance(run.model, Seq2Seq)
    if is_seq2seq != (targets is not None) or (targets is not None and len(targets) != len(texts)):
        raise UserError("targets: a Seq2Seq needs one for each text, and a GPT has none.")
    decoder = run.config.decoder
    length = decoder.max_len + 1
    if is_seq2seq:
        context = run.config.encoder.max_len
        sources = [run.tokenizer.encode_source(run.prepare(text)) for text in texts]
        sources = fit("sources", sources, context, keeps_end=True)
        targets = fit("targets", [run.tokenizer.encode_target(run.prepare(t)) for t in targets], decoder.max_len)
        pieces = [(i, np.insert(target, 0, run.generation_defaults.start_id)) for i, target in enumerate(targets)]
    else:
        wholes = [run.tokenizer.encode(text) for text in texts]
        pieces = [
            (i, w[a : a + length]) for i, w in enumerate(wholes) for a in range(0, max(1, len(w) - 1), length - 1)
        ]
    sums = np.zeros((len(texts), 2))
    longest = max((len(piece) for _, piece in pieces), default=1)
    batch_size = max(1, min(batch_size, MOST_LOGITS // (longest * decoder.vocab_size)))
    for rows, tokens, is_token in _batches(run, [piece for _, piece in pieces], batch_size, length, progress):
        inputs, are_tokens = tokens[:, :-1], is_token[:, :-1]
        if is_seq2seq:
            source = [sources[pieces[row][0]] for row in rows]
            source = _fill(source, batch_size, run.config.encoder.max_len, run.generation_defaults.pad_id)
            outputs = logits(run, *source, inputs, target_is_token=are_tokens)
        else:
            outputs = logits(run, inputs, are_tokens)
        nats = np.asarray(optax.softmax_cross_entropy_with_integer_labels(outputs, tokens[:, 1:]))
        for place, row in enumerate(rows):
            is_target = is_token[place, 1:]
            sums[pieces[row][0]] += -nats[place][is_target].sum(), is_target.sum()
    return [Likelihood(float(total), int(number)) for total, number in sums]


def fit(what: str, encoded: list[np.ndarray], context: int, keeps_end: bool = False) -> list[np.ndarray]:
    """Texts [T] as the model can read them: `context` tokens at most. A warning on stderr tells how many were longer.

    Args:
      keeps_end: a text loses tokens before its last one, which stays.
    """
    if num_cut := sum(len(tokens) > context for tokens in encoded):
        print(f"warning: {num_cut} of {len(encoded)} {what} are cut to {context} tokens.", file=sys.stderr)
    last = int(keeps_end)
    return [
        tokens if len(tokens) <= context else np.concatenate([tokens[: context - last], tokens[len(tokens) - last :]])
        for tokens in encoded
    ]


def _check(run: Run, kinds: tuple[type, ...], batch_size: int) -> None:
    if not isinstance(run.model, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(f"run: is a {type(run.model).__name__}, and this needs a {names}.")
    if run.tokenizer is None:
        raise UserError("this model came without a tokenizer that is known here. Give tokens to logits.")
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: must be at least 1.")


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """The numbers 0, 1, ... in batches, those of about one length together."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for first in range(0, len(order), batch_size):
        yield order[first : first + batch_size]


def _batches(
    run: Run, encoded: list[np.ndarray], batch_size: int, most: int, progress: Progress
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Rows, and their tokens and is_token, [batch_size, T] each, T <= most."""
    num_done = 0
    for rows in by_length([len(tokens) for tokens in encoded], batch_size):
        yield rows, *_fill([encoded[row] for row in rows], batch_size, most, run.generation_defaults.pad_id)
        num_done += len(rows)
        if progress:
            progress(num_done)


def _fill(encoded: list[np.ndarray], num_rows: int, most: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens int32 and is_token bool, [num_rows, T], padded on the right; T is one of few."""
    longest = max(1, *map(len, encoded))
    shape = (num_rows, min(-(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, most))
    tokens, is_token = np.full(shape, pad_id, np.int32), np.zeros(shape, bool)
    for row, ids in enumerate(encoded):
        tokens[row, : len(ids)], is_token[row, : len(ids)] = ids, True
    return tokens, is_token
