"""Log-probabilities of texts: score, perplexity."""

import math
from collections.abc import Sequence
from typing import NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.errors import UserError
from transformer_jax.inference.adapter_names import AdapterNames, choose_adapters, of_texts
from transformer_jax.inference.batching import check_ids, truncate
from transformer_jax.inference.forward import logits
from transformer_jax.inference.predict import Progress, check_run, pad_rows, text_batches
from transformer_jax.inference.prefix import prefix_tokens
from transformer_jax.inference.texts import text_list
from transformer_jax.models import GPT, Seq2Seq
from transformer_jax.run import Run

MAX_LOGITS = 2**26  # logits of a batch when every token has its own: 256 MB


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


@overload
def score(  # type: ignore[overload-overlap]
    run: Run,
    texts: str,
    targets: str | None = None,
    *,
    batch_size: int = 32,
    progress: Progress = None,
    adapter_names: AdapterNames = None,
) -> Likelihood: ...
@overload
def score(
    run: Run,
    texts: Sequence[str],
    targets: Sequence[str] | None = None,
    *,
    batch_size: int = 32,
    progress: Progress = None,
    adapter_names: AdapterNames = None,
) -> list[Likelihood]: ...
def score(
    run: Run,
    texts: str | Sequence[str],
    targets: str | Sequence[str] | None = None,
    *,
    batch_size: int = 32,
    progress: Progress = None,
    adapter_names: AdapterNames = None,
) -> Likelihood | list[Likelihood]:
    """Log-probability of a text, or of each of several; for a Seq2Seq, of each target given its source, with its end.

    A GPT predicts every token of a text from those before it; the first token is given, unless a text is the prefix of
    the run. A text longer than the context is read in consecutive pieces, each after the prefix. A source or target
    longer than the context is cut, with a warning on stderr.

    Args:
      adapter_names: for a run with adapters by name: one for all texts, or one for each; "": none.
    Returns:
      One Likelihood for a string, or a list of them.
    Raises:
      UserError: the run is neither a GPT nor a Seq2Seq, or has no tokenizer; texts of another type; no targets, or not
        as many as texts, or a list of them for one text; an unknown adapter.
    """
    check_run(run, (GPT, Seq2Seq), batch_size)
    is_seq2seq = run.model.reads_source
    text_rows = text_list("texts", texts)
    target_rows = [] if targets is None else text_list("targets", targets)
    if is_seq2seq != (targets is not None) or (is_seq2seq and len(target_rows) != len(text_rows)):
        raise UserError("targets: a Seq2Seq needs one for each text, and a GPT takes none.")
    if is_seq2seq and isinstance(texts, str) != isinstance(targets, str):
        raise UserError("targets: must be a string where texts is one, and else a list.")
    run = choose_adapters(run, adapter_names, len(text_rows))
    decoder = run.config.decoder
    sources = _encode_sources(run, text_rows) if is_seq2seq else []
    pieces = _target_pieces(run, target_rows) if is_seq2seq else _text_pieces(run, text_rows)
    totals = np.zeros((len(text_rows), 2))  # log-probability and number of tokens
    longest = max([1, *(len(piece) for _, piece in pieces)])  # an empty text has no token
    batch_size = max(1, min(batch_size, MAX_LOGITS // (longest * decoder.vocab_size)))
    rows = [piece for _, piece in pieces]
    for indices, tokens, is_token in text_batches(run, rows, batch_size, run.decoder_context + 1, progress):
        text_indices = [pieces[index][0] for index in indices]
        inputs = tokens[:, :-1]
        is_input = is_token[:, :-1]
        batch_run = of_texts(run, text_indices, batch_size)
        if is_seq2seq:
            batch = [sources[i] for i in text_indices]
            source, is_source = pad_rows(run, batch, batch_size, run.encoder_context)
            outputs = logits(batch_run, source, is_source, inputs, target_is_token=is_input)
        else:
            outputs = logits(batch_run, inputs, is_input)
        log_probs = np.asarray(token_log_probs(outputs, tokens[:, 1:]))
        for row, i in enumerate(text_indices):
            is_target = is_token[row, 1:]
            totals[i] += log_probs[row][is_target].sum(), is_target.sum()
    if run.prefix and run.prefix.logits is not None:  # a text before them predicts the first tokens, too
        first_log_probs = np.asarray(jax.nn.log_softmax(run.prefix.logits[0]))
        for i, token in {i: piece[0] for i, piece in reversed(pieces) if len(piece)}.items():
            totals[i] += first_log_probs[token], 1
    scores = [Likelihood(float(total), int(number)) for total, number in totals]
    return scores[0] if isinstance(texts, str) else scores


def _encode_sources(run: Run, texts: Sequence[str]) -> list[np.ndarray]:
    tokenizer = run.text_tokenizer
    rows = [tokenizer.encode_source(run.prepare(text)) for text in texts]
    check_ids("texts", rows, tokenizer.source, run.config.encoder.vocab_size)
    return truncate("sources", rows, run.encoder_context, keeps_end=True)


def _target_pieces(run: Run, targets: Sequence[str]) -> list[tuple[int, np.ndarray]]:
    """Index of each target, and its tokens after the token that starts a target."""
    tokenizer = run.text_tokenizer
    rows = truncate("targets", [tokenizer.encode_target(run.prepare(t)) for t in targets], run.decoder_context)
    check_ids("targets", rows, tokenizer, run.config.decoder.vocab_size)
    return [(i, np.insert(row, 0, run.generation_defaults.start_id)) for i, row in enumerate(rows)]


def _text_pieces(run: Run, texts: Sequence[str]) -> list[tuple[int, np.ndarray]]:
    """Index of the text and tokens of each piece. A piece begins with the last token of the piece before it."""
    max_len = run.decoder_context
    tokenizer = run.text_tokenizer
    encode = tokenizer.encode_continuation if len(prefix_tokens(run)) else tokenizer.encode
    rows = [encode(text) for text in texts]
    check_ids("texts", rows, tokenizer, run.config.decoder.vocab_size)
    return [
        (i, row[first : first + max_len + 1])
        for i, row in enumerate(rows)
        for first in range(0, max(1, len(row) - 1), max_len)
    ]


@jax.jit
def token_log_probs(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Log-probability of each token, float32 [B, T], from logits [B, T, V] and token ids [B, T]."""
    chosen = jnp.take_along_axis(logits, tokens[:, :, None], axis=2)[:, :, 0]
    return chosen - jax.nn.logsumexp(logits, axis=2)
