"""Toy models for beam search, and slow exact twins of it: every hypothesis with its log-probability, in float64."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import sampling
from transformer_jax.sampling import Beams, BeamSpec

EOS, PAD, NUM_HASHES = 1, 99, 10007  # no toy model has a token 99
PROMPTS = ((0,), (1, 0), (0, 0, 1))
MANY_PROMPTS = [tuple(prompt) for prompt in np.random.default_rng(3).integers(0, 5, (53, 2)).tolist()]
STEADY_TABLE = np.log(np.array([[0.05, 0.9, 0.05], [0.55, 0.35, 0.1], [0.5, 0.0001, 0.4999]], np.float32))


class History(NamedTuple):
    """Cache of the toy models: every token so far, so that a beam with another beam's cache has other logits."""

    tokens: jax.Array  # [B, S]; -1: padding, or not written yet
    num_written: jax.Array  # a scalar, which a reorder leaves alone

    def reorder(self, rows):
        return self._replace(tokens=self.tokens[rows])

    def expand(self, num, capacity):
        return self.reorder(jnp.repeat(jnp.arange(len(self.tokens)), num))


def remember(history, tokens, is_token):
    new = jnp.where(is_token, tokens, -1)
    written = jax.lax.dynamic_update_slice(history.tokens, new, (0, history.num_written))
    return History(written, history.num_written + tokens.shape[1])


def hash_step(table, tokens, is_token, history):
    """Step whose logits are a row of the table, picked by a hash of all tokens in order; NaN if the cache is full."""
    history = remember(history, tokens, is_token)
    row = jnp.zeros(len(tokens), jnp.int32)
    for token in history.tokens.T:
        row = jnp.where(token < 0, row, (row * 31 + token + 1) % NUM_HASHES)
    return jnp.where(history.num_written > history.tokens.shape[1], jnp.nan, table[row]), history


def first_token_step(table, tokens, is_token, history):
    """Step with the same logits at every position: the row of the prompt's first token."""
    history = remember(history, tokens, is_token)
    return jnp.where(history.num_written > history.tokens.shape[1], jnp.nan, table[history.tokens[:, 0]]), history


@functools.cache
def random_table(V, scale=1.5):
    return (scale * np.random.default_rng(V).normal(size=(NUM_HASHES, V))).astype(np.float32)


def padded(prompts):
    """Prompts with padding on the left in even rows, on the right in odd ones."""
    T = max(map(len, prompts))
    tokens = np.zeros((len(prompts), T), np.int32)
    is_token = np.zeros((len(prompts), T), bool)
    for row, prompt in enumerate(prompts):
        columns = slice(0, len(prompt)) if row % 2 else slice(T - len(prompt), T)
        tokens[row, columns] = prompt
        is_token[row, columns] = True
    return tokens, is_token


def beam_search(step, cache, tokens, is_token, processors=(), *, num_beams, max_new_tokens, eos_ids, pad_id, **kwargs):
    """`sampling.beam_search` with its settings by name, static ones and numbers."""
    static = {name: kwargs.pop(name) for name in ("num_return", "stopping", "num_groups") if name in kwargs}
    spec = sampling.DecodeSpec(max_new_tokens, eos_ids, pad_id, beams=BeamSpec(num_beams, **static))
    params = sampling.BeamParams.of(max_new_tokens, processors, **kwargs)
    return sampling.beam_search(step, cache, sampling.Prompts(tokens, is_token), params, spec)


def search_beams(table, prompts, step=hash_step, missing_slots=0, **kwargs):
    """Beam search with a toy model, as numpy arrays of checked shapes and types."""
    tokens, is_token = padded(prompts)
    capacity = tokens.shape[1] + kwargs["max_new_tokens"] - 1 - missing_slots
    history = History(np.full((len(prompts), capacity), -1, np.int32), np.int32(0))
    kwargs = {"eos_ids": (EOS,), "pad_id": PAD} | kwargs
    beams = beam_search(jax.tree_util.Partial(step, jnp.array(table)), history, tokens, is_token, **kwargs)
    shape = (len(prompts), kwargs.get("num_return", 1))
    assert beams.tokens.shape == (*shape, kwargs["max_new_tokens"]) and beams.scores.shape == shape
    assert beams.lengths.shape == shape and beams.scores.dtype == jnp.float32
    assert beams.tokens.dtype == beams.lengths.dtype == jnp.int32
    return Beams(*map(np.asarray, beams))


@functools.cache
def next_log_probs(V, text):
    """Log-probabilities of every next token with `hash_step` over `random_table(V)`, float64."""
    row = functools.reduce(lambda row, token: (row * 31 + token + 1) % NUM_HASHES, text, 0)
    logits = random_table(V)[row].astype(np.float64)
    return logits - np.log(np.sum(np.exp(logits)))


def penalized(log_prob, n, alpha, normalization):
    return log_prob / {"gnmt": (5 + n) ** alpha / 6**alpha, "mean": float(n) ** alpha}[normalization]


@functools.cache
def all_hypotheses(V, prompt, max_new_tokens):
    """Every hypothesis after `prompt`: {tokens: log-probability}."""
    hypotheses, open_beams = {}, {(): 0.0}
    for n in range(1, max_new_tokens + 1):
        longer = {
            (*tokens, token): total + added
            for tokens, total in open_beams.items()
            for token, added in enumerate(next_log_probs(V, (*prompt, *tokens)))
        }
        hypotheses |= {t: total for t, total in longer.items() if t[-1] == EOS or n == max_new_tokens}
        open_beams = {t: total for t, total in longer.items() if t[-1] != EOS}
    return hypotheses


def assert_best(beams, row, scores_of):
    """Assert that `beams` of a row are the head of the ranking `scores_of` {tokens: score}, padded after their end."""
    best = sorted(scores_of.values(), reverse=True) + [-np.inf] * len(beams.scores[row])
    np.testing.assert_allclose(beams.scores[row], best[: len(beams.scores[row])], rtol=1e-5, atol=1e-5)
    seen = set()
    for tokens, score, length in zip(beams.tokens[row], beams.scores[row], beams.lengths[row], strict=True):
        assert np.all(tokens[length:] == PAD)
        hypothesis = tuple(tokens[:length].tolist())
        if score == -np.inf:
            assert length == 0
            continue
        assert hypothesis not in seen  # so that, with ties too, the hypotheses are the best ones
        seen.add(hypothesis)
        np.testing.assert_allclose(score, scores_of[hypothesis], rtol=1e-5, atol=1e-5)
