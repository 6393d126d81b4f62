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

The numbers of a processor are arguments of the compiled program, not constants in it: another temperature or another k
compiles nothing. Which processors there are, and fields marked static, are compiled in.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.errors import check
from transformer_jax.sampling.top_k import is_top_k

RULED_OUT = jnp.finfo(jnp.float32).min
# Relative error that sums and ratios of float32 probabilities may have. What is nearer than this to a threshold counts
# as equal to it: 0.5 + 0.3 reaches p = 0.8, although the float32 sum is a little less.
TOLERANCE = 32 * float(jnp.finfo(jnp.float32).eps)
T = TypeVar("T")
State = Any  # of a processor: a pytree whose leaves have R rows


def init_states(
    processors: tuple, tokens: jax.Array, lengths: jax.Array, max_new_tokens: jax.Array | np.integer | int
) -> tuple[State, ...]:
    """Return the initial state of each logits processor, from left-aligned prompts [R, S] and their lengths [R]."""
    return tuple(processor.init_state(tokens, lengths, max_new_tokens) for processor in processors)


def apply_processors(
    processors: tuple, logits: jax.Array, tokens: jax.Array, lengths: jax.Array, states: tuple
) -> tuple[jax.Array, tuple]:
    """Apply logits processors in order: (logits [R, V], new states). No result is below RULED_OUT, not even -inf."""
    processors = jax.tree.map(jnp.asarray, processors)  # outside jit too, their numbers are arrays
    new_states = []
    for processor, state in zip(processors, states, strict=True):
        logits, state = processor(jnp.maximum(logits, RULED_OUT), tokens, lengths, state)
        new_states.append(state)
    return logits, tuple(new_states)


def _left_padded(rows: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """Rows of ids of any lengths as one int32 array, -1 before the first id of a row."""
    longest = max(map(len, rows), default=1)
    return np.array([(-1,) * (longest - len(row)) + row for row in rows], np.int32).reshape(len(rows), longest)


_AS_ARRAY: dict[Any, Callable[[Any], Any]] = {  # annotation of a field: its value as an argument of a compiled program
    float: np.float32,
    int: np.int32,
    tuple[float, ...]: lambda values: np.array(values, np.float32),
    tuple[int, ...]: lambda values: np.array(values, np.int32),
    tuple[tuple[int, ...], ...]: _left_padded,
}


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def processor_dataclass(cls: type[T]) -> type[T]:
    """Make a frozen dataclass whose numbers are leaves of a pytree, so that new numbers compile nothing.

    Its fields hold Python's numbers, which `__post_init__` checks and `==` compares; flattened they are arrays.
    Fields of other types, and those with the metadata {"static": True}, are compiled in. Unflattening checks nothing.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    numbers = [field for field in fields if field.type in _AS_ARRAY and not field.metadata.get("static")]
    static = [field.name for field in fields if field not in numbers]

    def flatten(processor):
        leaves = []
        for field in numbers:
            value = getattr(processor, field.name)
            leaves.append(_AS_ARRAY[field.type](value) if isinstance(value, int | float | tuple) else value)
        return leaves, tuple(getattr(processor, name) for name in static)

    def unflatten(static_values, leaves):
        processor = object.__new__(cls)
        for name, value in zip([*(field.name for field in numbers), *static], [*leaves, *static_values], strict=True):
            object.__setattr__(processor, name, value)
        return processor

    jax.tree_util.register_pytree_node(cls, flatten, unflatten)
    return cls


class LogitsProcessor:
    """Base class of logits processors, without state."""

    def init_state(self, tokens: jax.Array, lengths: jax.Array, max_new_tokens: jax.Array | int) -> State:
        """Return the state before the first new token."""
        return ()


def check_ids(field: str, ids: tuple[int, ...]) -> None:
    """Raise UserError unless all `ids` are 0 or more."""
    check(all(token >= 0 for token in ids), field, ids, "must be token ids, 0 or more")


def where_possible(new: jax.Array, logits: jax.Array) -> jax.Array:
    """Return `new`, except that tokens ruled out in `logits` stay ruled out; no result is below RULED_OUT."""
    return jnp.where(logits <= RULED_OUT, RULED_OUT, jnp.maximum(new, RULED_OUT))


@processor_dataclass
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


@processor_dataclass
class TopK(LogitsProcessor):
    """Top-k: keep exactly the k most likely tokens; ties go to the smaller id. Fan et al. 2018.

    UserError: k below 1, or no number of 32 bits.
    """

    k: int

    def __post_init__(self):
        check(1 <= self.k < 2**31, "top_k", self.k, "must be 1 or more; to keep all tokens omit it, or take 0")

    def __call__(self, logits, tokens, lengths, state):
        return jnp.where(is_top_k(logits, self.k), logits, RULED_OUT), state


@processor_dataclass
class TopP(LogitsProcessor):
    """Top-p (nucleus): keep the smallest set of most likely tokens with probability p or more. Holtzman et al. 2019.

    The most likely token is always kept; ties go to the smaller id. A sum within TOLERANCE of p reaches it. UserError:
    p outside (0, 1].
    """

    p: float

    def __post_init__(self):
        check(0 < self.p <= 1, "top_p", self.p, "must be above 0 and at most 1 (all tokens)")

    def __call__(self, logits, tokens, lengths, state):
        return keep_first(logits, -logits, self.p), state


@processor_dataclass
class MinP(LogitsProcessor):
    """Min-p: keep tokens that are at least `p` times as likely as the most likely one. Nguyen et al. 2024, section 3.

    Tokens of equal probability are all kept, or none. A ratio within TOLERANCE of p is kept. UserError: p outside
    (0, 1].
    """

    p: float

    def __post_init__(self):
        check(0 < self.p <= 1, "min_p", self.p, "must be above 0 and at most 1 (only the most likely tokens)")

    def __call__(self, logits, tokens, lengths, state):
        ratio = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
        return jnp.where(ratio < self.p * (1 - TOLERANCE), RULED_OUT, logits), state


@processor_dataclass
class TypicalP(LogitsProcessor):
    """Typical-p: keep the tokens with surprise nearest to the entropy, the smallest set of probability p or more.

    Surprise is -log p(token), and its expectation is the entropy. Meister et al. 2023, section 4. The nearest token is
    always kept; ties go to the smaller id, and distances are compared in steps of 2^-17, which is more than their
    float32 error. A sum within TOLERANCE of p reaches it. UserError: p outside (0, 1].
    """

    p: float

    def __post_init__(self):
        check(0 < self.p <= 1, "typical_p", self.p, "must be above 0 and at most 1 (all tokens)")

    def __call__(self, logits, tokens, lengths, state):
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        probability = jnp.exp(log_probs)
        entropy = -jnp.sum(jnp.where(probability > 0, probability * log_probs, 0.0), axis=-1, keepdims=True)
        distance = jnp.round(jnp.abs(log_probs + entropy) * 2**17)
        return keep_first(logits, distance, self.p), state


@processor_dataclass
class LogitBias(LogitsProcessor):
    """Logit bias: add `biases` to the logits of the tokens `ids`, one for each.

    UserError: a bias outside [-1e6, 1e6], a token below 0, or not as many biases as ids.
    """

    ids: tuple[int, ...]
    biases: tuple[float, ...]

    def __post_init__(self):
        is_valid = len(self.ids) == len(self.biases) and all(abs(bias) <= 1e6 for bias in self.biases)
        check(
            is_valid,
            "biases",
            self.biases,
            f"must be {len(self.ids)} numbers from -1e6 to 1e6, one for each of the ids",
        )
        check_ids("ids", self.ids)

    def __call__(self, logits, tokens, lengths, state):
        new = logits.at[:, jnp.asarray(self.ids)].add(jnp.asarray(self.biases), mode="drop")
        return where_possible(new, logits), state


@processor_dataclass
class Renormalize(LogitsProcessor):
    """Renormalize: turn the logits of the remaining tokens into log-probabilities.

    It is meant for beam search, which compares sums. A single token, greedy or sampled, is the same without it.
    """

    def __call__(self, logits, tokens, lengths, state):
        return where_possible(jax.nn.log_softmax(logits, axis=-1), logits), state


@processor_dataclass
class Custom(LogitsProcessor):
    """Custom logits processor: `function(logits, tokens, lengths) -> logits`, with the shapes at the top of this file.

    It is compiled, and jit compares functions by identity: each new function compiles a new program.
    """

    function: Callable

    def __call__(self, logits, tokens, lengths, state):
        return self.function(logits, tokens, lengths), state


def keep_first(logits, rank, p):
    """Keep the first tokens by ascending `rank` that are needed to reach probability p; rule out the rest. 1: all."""
    order = jnp.argsort(rank, axis=-1, stable=True)
    probability = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), order, axis=-1)
    # A token stays if the tokens before it do not yet reach p. The first one always stays.
    before = jnp.cumsum(probability, axis=-1) - probability
    is_kept_in_order = ((before < p * (1 - TOLERANCE)) | (p >= 1)).at[:, 0].set(True)
    rows = jnp.arange(len(logits))[:, None]
    is_kept = jnp.zeros(logits.shape, bool).at[rows, order].set(is_kept_in_order)
    return jnp.where(is_kept, logits, RULED_OUT)
