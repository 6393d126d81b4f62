"""What is done to the next token's logits before one is chosen: small processors, applied in the order they are given.

A method is a frozen dataclass that is called as `f(logits, tokens, lengths, state) -> (logits, state)`:

    logits   [R, V] float32; beam search gives log-probabilities instead, and adds up what the processors make of them
    tokens   [R, S] int32: the prompt and the new tokens of each row, left-aligned
    lengths  [R] int32: how many; what stands beyond them means nothing
    state    a pytree whose leaves have R rows, which beam search reorders with its beams; () for most processors

`f.start(tokens, lengths, max_new_tokens)` makes the first state, from the prompts alone. A token that is ruled out
has RULED_OUT = finfo.min: finite, so that nothing becomes NaN, and of probability 0; what one method ruled out no
other brings back, but for the forced tokens. Here are the processors that look at the logits alone; rules.py has those
that look at the text.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.errors import check

RULED_OUT = jnp.finfo(jnp.float32).min


def start(processors: tuple, tokens: jax.Array, lengths: jax.Array, max_new_tokens: int) -> tuple:
    """The first state of each method: prompts [R, S], left-aligned, and their lengths [R]."""
    return tuple(method.start(tokens, lengths, max_new_tokens) for method in processors)


def apply(
    processors: tuple, logits: jax.Array, tokens: jax.Array, lengths: jax.Array, states: tuple
) -> tuple[jax.Array, tuple]:
    """One method after the other: (logits [R, V], new states). Of logits below RULED_OUT, -inf, none is left."""
    new_states = []
    for method, state in zip(processors, states, strict=True):
        logits, state = method(jnp.maximum(logits, RULED_OUT), tokens, lengths, state)
        new_states.append(state)
    return logits, tuple(new_states)


def method(cls: type) -> type:
    """A frozen dataclass that jit knows by its fields: processors of equal fields share a compiled program."""
    return jax.tree_util.register_static(dataclasses.dataclass(frozen=True)(cls))


CHUNK = 128  # of logits whose largest is found first


def largest(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k(x, k)` of [R, N]: the k largest of each row and where they are, of equals those that come first.

    On a CPU that scans a row one by one; the largest of chunks are found with all that a processor has, and the k
    largest of all are in k chunks.
    """
    R, N = x.shape
    num_chunks = -(-N // CHUNK)
    if num_chunks <= k:
        return jax.lax.top_k(x, k)
    chunks = jnp.pad(x, ((0, 0), (0, num_chunks * CHUNK - N)), constant_values=-jnp.inf).reshape(R, num_chunks, CHUNK)
    best = jnp.sort(jax.lax.top_k(jnp.max(chunks, axis=2), k)[1], axis=1)  # in their order, for the sake of equals
    values, places = jax.lax.top_k(jnp.take_along_axis(chunks, best[:, :, None], axis=1).reshape(R, k * CHUNK), k)
    return values, jnp.take_along_axis(best, places // CHUNK, axis=1) * CHUNK + places % CHUNK


class LogitsProcessor:
    """What most processors share: no state."""

    def start(self, tokens: jax.Array, lengths: jax.Array, max_new_tokens: int) -> Any:
        """The state before the first new token."""
        return ()


def where_possible(new: jax.Array, logits: jax.Array) -> jax.Array:
    """`new`, but what is ruled out in `logits` stays so, and nothing falls below that."""
    return jnp.where(logits <= RULED_OUT, RULED_OUT, jnp.maximum(new, RULED_OUT))


@method
class Temperature(LogitsProcessor):
    """Divide by `value`: below 1 sharpens the distribution, above 1 flattens it. UserError outside [1e-6, 1e6]."""

    value: float

    def __post_init__(self):
        rule = "must be above 0, from 1e-6 to 1e6. For 0, choose greedily: method=greedy"
        check(1e-6 <= self.value <= 1e6, "temperature", self.value, rule)  # beyond, the division overflows

    def __call__(self, logits, tokens, lengths, state):
        return where_possible(logits / self.value, logits), state


@method
class TopK(LogitsProcessor):
    """Keep the k most likely tokens: exactly k, ties go to the smaller id. Fan et al. 2018. UserError below 1."""

    k: int

    def __post_init__(self):
        check(self.k >= 1, "top_k", self.k, "must be 1 or more; to keep all tokens leave it away, or 0")

    def __call__(self, logits, tokens, lengths, state):
        _, kept_ids = largest(logits, min(self.k, logits.shape[-1]))
        rows = jnp.arange(len(logits))[:, None]
        is_kept = jnp.zeros(logits.shape, bool).at[rows, kept_ids].set(True)
        return jnp.where(is_kept, logits, RULED_OUT), state


@method
class TopP(LogitsProcessor):
    """Keep the smallest set of most likely tokens whose probability is at least p. Holtzman et al. 2019.

    The most likely token is always kept; of equally likely ones the smaller ids come first. UserError outside (0, 1].
    """

    p: float

    def __post_init__(self):
        check(0 < self.p <= 1, "top_p", self.p, "must be above 0 and at most 1 (all tokens)")

    def __call__(self, logits, tokens, lengths, state):
        return _keep_first(logits, -logits, self.p), state


@method
class MinP(LogitsProcessor):
    """Keep what is at least `p` times as likely as the likeliest token. Nguyen et al. 2024, section 3.

    Ties are kept together. UserError outside (0, 1].
    """

    p: float

    def __post_init__(self):
        check(0 < self.p <= 1, "min_p", self.p, "must be above 0 and at most 1 (the likeliest tokens alone)")

    def __call__(self, logits, tokens, lengths, state):
        ratio = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
        return jnp.where(ratio < self.p, RULED_OUT, logits), state


@method
class TypicalP(LogitsProcessor):
    """Keep the smallest set, of probability at least p, whose surprise is nearest to the one expected.

    Surprise is -log p(token), what is expected of it the entropy. Meister et al. 2023, section 4. The nearest token
    is always kept; of equally near ones the smaller ids come first. UserError outside (0, 1].
    """

    p: float

    def __post_init__(self):
        check(0 < self.p <= 1, "typical_p", self.p, "must be above 0 and at most 1 (all tokens)")

    def __call__(self, logits, tokens, lengths, state):
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        probability = jnp.exp(log_probs)
        entropy = -jnp.sum(jnp.where(probability > 0, probability * log_probs, 0.0), axis=-1, keepdims=True)
        return _keep_first(logits, jnp.abs(log_probs + entropy), self.p), state


@method
class LogitBias(LogitsProcessor):
    """Add to the logits of some tokens: ((token, bias), ...). UserError: a bias beyond 1e6, a token below 0."""

    biases: tuple[tuple[int, float], ...]

    def __post_init__(self):
        is_fine = all(token >= 0 and abs(bias) <= 1e6 for token, bias in self.biases)
        check(is_fine, "biases", self.biases, "must be pairs (token, bias) of a bias from -1e6 to 1e6")

    def __call__(self, logits, tokens, lengths, state):
        if not self.biases:
            return logits, state
        ids, biases = zip(*self.biases, strict=True)
        new = logits.at[:, jnp.array(ids, jnp.int32)].add(jnp.array(biases, jnp.float32), mode="drop")
        return where_possible(new, logits), state


@method
class Renormalize(LogitsProcessor):
    """Make log-probabilities of what is left.

    For beam search, where sums are compared; the choice of one token, greedy or drawn, is the same without it.
    """

    def __call__(self, logits, tokens, lengths, state):
        return where_possible(jax.nn.log_softmax(logits, axis=-1), logits), state


@method
class Custom(LogitsProcessor):
    """A function of one's own: `function(logits, tokens, lengths) -> logits`, shapes as at the top of this file.

    It is compiled, and known to jit by identity: a new function is a new program.
    """

    function: Callable

    def __call__(self, logits, tokens, lengths, state):
        return self.function(logits, tokens, lengths), state


def _keep_first(logits, rank, p):
    """Of tokens in the order of `rank`, least first, those needed for a probability of p."""
    order = jnp.argsort(rank, axis=-1, stable=True)
    probability = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), order, axis=-1)
    # A token stays if those before it do not yet reach p. The first has nothing before it.
    is_kept_in_order = (jnp.cumsum(probability, axis=-1) - probability < p).at[:, 0].set(True)
    rows = jnp.arange(len(logits))[:, None]
    is_kept = jnp.zeros(logits.shape, bool).at[rows, order].set(is_kept_in_order)
    return jnp.where(is_kept, logits, RULED_OUT)
