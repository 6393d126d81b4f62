"""Logits processors: small functions that change the logits of the next token before it is chosen.

They are applied in the order in which they are given. A logits processor is a frozen dataclass that is called as
`processor(logits, tokens, lengths, state) -> (logits, state)`:

    logits   [R, V] float32; in beam search log-probabilities instead, and the beam's score is the sum of the results
    tokens   [R, S] int32: token buffer with the prompt and the new tokens of each row, left-aligned
    lengths  [R] int32: number of tokens in each row; slots beyond it hold arbitrary values
    state    a pytree whose leaves have R rows, which beam search reorders with its beams; () for most processors

`processor.init_state(tokens, lengths, max_new_tokens)` returns the initial state, from the prompts alone. A token that
is ruled out has the logit RULED_OUT = finfo.min: finite, so that nothing becomes NaN, and of probability 0. A token
that one processor rules out stays ruled out in all later ones, except for forced tokens. This file has the processors
that look at the logits alone; text_processors.py has those that look at the tokens of the text.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp

from transformer_jax.errors import check

RULED_OUT = jnp.finfo(jnp.float32).min
T = TypeVar("T")


def init_states(
    processors: tuple, tokens: jax.Array, lengths: jax.Array, max_new_tokens: jax.Array | int
) -> tuple[Any, ...]:
    """Return the initial state of each logits processor, from left-aligned prompts [R, S] and their lengths [R]."""
    return tuple(processor.init_state(tokens, lengths, max_new_tokens) for processor in processors)


def apply_processors(
    processors: tuple, logits: jax.Array, tokens: jax.Array, lengths: jax.Array, states: tuple
) -> tuple[jax.Array, tuple]:
    """Apply logits processors in order: (logits [R, V], new states). No result is below RULED_OUT, not even -inf."""
    new_states = []
    for processor, state in zip(processors, states, strict=True):
        logits, state = processor(jnp.maximum(logits, RULED_OUT), tokens, lengths, state)
        new_states.append(state)
    return logits, tuple(new_states)


@dataclass_transform(frozen_default=True)
def static_dataclass(cls: type[T]) -> type[T]:
    """Make a frozen dataclass that is static under jit: instances of equal fields share a compiled program."""
    return jax.tree_util.register_static(dataclasses.dataclass(frozen=True)(cls))


TOP_K_CHUNK = 128  # logits in a chunk of `largest`


def largest(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Top-k of each row: the values and indices of `jax.lax.top_k(x, k)` for [R, N]; ties go to the lower index.

    On a CPU `jax.lax.top_k` scans a row one by one. The maxima of chunks are found in vectorized code, and the k
    largest values of a row are all in the k chunks with the largest maxima.
    """
    R, N = x.shape
    num_chunks = -(-N // TOP_K_CHUNK)
    if num_chunks <= k:
        return jax.lax.top_k(x, k)
    chunks = jnp.pad(x, ((0, 0), (0, num_chunks * TOP_K_CHUNK - N)), constant_values=-jnp.inf).reshape(
        R, num_chunks, TOP_K_CHUNK
    )
    # Sorted back into the order of the chunks, so that ties go to the lower index.
    best = jnp.sort(jax.lax.top_k(jnp.max(chunks, axis=2), k)[1], axis=1)
    values, indices = jax.lax.top_k(
        jnp.take_along_axis(chunks, best[:, :, None], axis=1).reshape(R, k * TOP_K_CHUNK), k
    )
    return values, jnp.take_along_axis(best, indices // TOP_K_CHUNK, axis=1) * TOP_K_CHUNK + indices % TOP_K_CHUNK


class LogitsProcessor:
    """Base class of logits processors, without state."""

    def init_state(self, tokens: jax.Array, lengths: jax.Array, max_new_tokens: jax.Array | int) -> Any:
        """Return the state before the first new token."""
        return ()


def where_possible(new: jax.Array, logits: jax.Array) -> jax.Array:
    """Return `new`, except that tokens ruled out in `logits` stay ruled out; no result is below RULED_OUT."""
    return jnp.where(logits <= RULED_OUT, RULED_OUT, jnp.maximum(new, RULED_OUT))


@static_dataclass
class Temperature(LogitsProcessor):
    """Temperature: divide logits by `value`; below 1 sharpens the distribution, above 1 flattens it.

    UserError: a value outside [1e-6, 1e6].
    """

    value: float

    def __post_init__(self):
        rule = "must be from 1e-6 to 1e6. For 0, choose greedily: method=greedy"
        check(1e-6 <= self.value <= 1e6, "temperature", self.value, rule)  # outside of these the division overflows

    def __call__(self, logits, tokens, lengths, state):
        return where_possible(logits / self.value, logits), state


@static_dataclass
class TopK(LogitsProcessor):
    """Top-k: keep exactly the k most likely tokens; ties go to the smaller id. Fan et al. 2018.

    UserError: k below 1.
    """

    k: int

    def __post_init__(self):
        check(self.k >= 1, "top_k", self.k, "must be 1 or more; to keep all tokens omit it, or take 0")

    def __call__(self, logits, tokens, lengths, state):
        _, kept_ids = largest(logits, min(self.k, logits.shape[-1]))
        rows = jnp.arange(len(logits))[:, None]
        is_kept = jnp.zeros(logits.shape, bool).at[rows, kept_ids].set(True)
        return jnp.where(is_kept, logits, RULED_OUT), state


@static_dataclass
class TopP(LogitsProcessor):
    """Top-p (nucleus): keep the smallest set of most likely tokens with probability p or more. Holtzman et al. 2019.

    The most likely token is always kept; ties go to the smaller id. UserError: p outside (0, 1].
    """

    p: float

    def __post_init__(self):
        check(0 < self.p <= 1, "top_p", self.p, "must be above 0 and at most 1 (all tokens)")

    def __call__(self, logits, tokens, lengths, state):
        return keep_first(logits, -logits, self.p), state


@static_dataclass
class MinP(LogitsProcessor):
    """Min-p: keep tokens that are at least `p` times as likely as the most likely one. Nguyen et al. 2024, section 3.

    Tokens of equal probability are all kept, or none. UserError: p outside (0, 1].
    """

    p: float

    def __post_init__(self):
        check(0 < self.p <= 1, "min_p", self.p, "must be above 0 and at most 1 (only the most likely tokens)")

    def __call__(self, logits, tokens, lengths, state):
        ratio = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
        return jnp.where(ratio < self.p, RULED_OUT, logits), state


@static_dataclass
class TypicalP(LogitsProcessor):
    """Typical-p: keep the tokens with surprise nearest to the entropy, the smallest set of probability p or more.

    Surprise is -log p(token), and its expectation is the entropy. Meister et al. 2023, section 4. The nearest token is
    always kept; ties go to the smaller id. UserError: p outside (0, 1].
    """

    p: float

    def __post_init__(self):
        check(0 < self.p <= 1, "typical_p", self.p, "must be above 0 and at most 1 (all tokens)")

    def __call__(self, logits, tokens, lengths, state):
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        probability = jnp.exp(log_probs)
        entropy = -jnp.sum(jnp.where(probability > 0, probability * log_probs, 0.0), axis=-1, keepdims=True)
        return keep_first(logits, jnp.abs(log_probs + entropy), self.p), state


@static_dataclass
class LogitBias(LogitsProcessor):
    """Logit bias: add `bias` to the logits of some tokens, ((token, bias), ...).

    UserError: a bias outside [-1e6, 1e6], or a token below 0.
    """

    biases: tuple[tuple[int, float], ...]

    def __post_init__(self):
        is_valid = all(token >= 0 and abs(bias) <= 1e6 for token, bias in self.biases)
        check(is_valid, "biases", self.biases, "must be pairs (token, bias) of a bias from -1e6 to 1e6")

    def __call__(self, logits, tokens, lengths, state):
        if not self.biases:
            return logits, state
        ids, biases = zip(*self.biases, strict=True)
        new = logits.at[:, jnp.array(ids, jnp.int32)].add(jnp.array(biases, jnp.float32), mode="drop")
        return where_possible(new, logits), state


@static_dataclass
class Renormalize(LogitsProcessor):
    """Renormalize: turn the logits of the remaining tokens into log-probabilities.

    It is meant for beam search, which compares sums. A single token, greedy or sampled, is the same without it.
    """

    def __call__(self, logits, tokens, lengths, state):
        return where_possible(jax.nn.log_softmax(logits, axis=-1), logits), state


@static_dataclass
class Custom(LogitsProcessor):
    """Custom logits processor: `function(logits, tokens, lengths) -> logits`, with the shapes at the top of this file.

    It is compiled, and jit compares functions by identity: each new function compiles a new program.
    """

    function: Callable

    def __call__(self, logits, tokens, lengths, state):
        return self.function(logits, tokens, lengths), state


def keep_first(logits, rank, p):
    """Keep the first tokens by ascending `rank` that are needed to reach probability p; rule out the rest."""
    order = jnp.argsort(rank, axis=-1, stable=True)
    probability = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), order, axis=-1)
    # A token stays if the tokens before it do not yet reach p. The first one always stays.
    is_kept_in_order = (jnp.cumsum(probability, axis=-1) - probability < p).at[:, 0].set(True)
    rows = jnp.arange(len(logits))[:, None]
    is_kept = jnp.zeros(logits.shape, bool).at[rows, order].set(is_kept_in_order)
    return jnp.where(is_kept, logits, RULED_OUT)
