"""Logits processors that look at the text: penalties, repeated n-grams, forced and suppressed tokens.

logits_processors.py describes how they are called. RepetitionPenalty and NoRepeatNgram count the prompt and the new
tokens together, as in their papers (on decoder-only models) and in the reference library. PresencePenalty and
FrequencyPenalty count new tokens alone. In an encoder-decoder the prompt is the start of the target, not the source.
"""

import dataclasses

import jax
import jax.numpy as jnp

from transformer_jax.errors import check
from transformer_jax.sampling.logits_processors import (
    RULED_OUT,
    LogitsProcessor,
    check_ids,
    processor_dataclass,
    where_possible,
)


class _CountsNewTokens(LogitsProcessor):
    """Logits processor whose state is the number of new tokens so far, int32 [R]."""

    def init_state(self, tokens, lengths, max_new_tokens):
        return jnp.zeros_like(lengths)


def _count(logits, tokens, first, end):
    """Count each vocabulary token at the positions `first` <= i < `end` [R] of the text: int32 [R, V]."""
    position = jnp.arange(tokens.shape[1])
    is_counted = (position >= jnp.reshape(first, (-1, 1))) & (position < end[:, None])
    rows = jnp.arange(len(tokens))[:, None]
    return jnp.zeros(logits.shape, jnp.int32).at[rows, tokens].add(is_counted, mode="drop")


def follows_newest(tokens: jax.Array, lengths: jax.Array, n: int) -> jax.Array:
    """Find the positions [R, S] of a text whose n preceding tokens equal the n newest tokens: bool [R, S]."""
    S = tokens.shape[1]
    position = jnp.arange(S)
    is_match = (position >= n) & (position < lengths[:, None])
    for j in range(1, min(n, S - 1) + 1):  # token j from the end, against the token j positions back
        newest = jnp.take_along_axis(tokens, jnp.maximum(lengths - j, 0)[:, None], axis=1)
        is_match &= jnp.roll(tokens, j, axis=1) == newest
    return is_match


def _rule_out(logits, ids):
    """Rule out the tokens `ids`; ids outside the vocabulary are ignored."""
    return logits.at[:, jnp.asarray(ids)].set(RULED_OUT, mode="drop")


def _force(logits, token):
    """Return logits of which only `token` is possible; its logit is 0."""
    return jnp.where(jnp.arange(logits.shape[-1]) == token, 0.0, RULED_OUT)


@processor_dataclass
class RepetitionPenalty(LogitsProcessor):
    """Repetition penalty: make tokens of the prompt or the new text less likely. Keskar et al. 2019, section 4.1.

    A positive logit is divided by `value`. A negative one is multiplied, because division would raise it. Prompt tokens
    count. UserError: a value outside [1e-3, 1e3].
    """

    value: float

    def __post_init__(self):
        check(1e-3 <= self.value <= 1e3, "repetition_penalty", self.value, "must be from 1e-3 to 1e3. Take 1.2")

    def __call__(self, logits, tokens, lengths, state):
        penalized = jnp.where(logits > 0, logits / self.value, logits * self.value)
        is_in_text = _count(logits, tokens, 0, lengths) > 0
        return where_possible(jnp.where(is_in_text, penalized, logits), logits), state


@processor_dataclass
class PresencePenalty(_CountsNewTokens):
    """Presence penalty: subtract `value` from the logits of all tokens among the new ones. Prompt tokens do not count.

    UserError: a value outside [-1e3, 1e3].
    """

    value: float

    def __post_init__(self):
        check(abs(self.value) <= 1e3, "presence_penalty", self.value, "must be from -1000 to 1000. Take 0 (none) to 2")

    def __call__(self, logits, tokens, lengths, state):
        is_present = _count(logits, tokens, lengths - state, lengths) > 0
        return where_possible(logits - self.value * is_present, logits), state + 1


@processor_dataclass
class FrequencyPenalty(_CountsNewTokens):
    """Frequency penalty: subtract `value` once for each occurrence among the new tokens. Prompt tokens do not count.

    UserError: a value outside [-1e3, 1e3].
    """

    value: float

    def __post_init__(self):
        check(abs(self.value) <= 1e3, "frequency_penalty", self.value, "must be from -1000 to 1000. Take 0 (none) to 2")

    def __call__(self, logits, tokens, lengths, state):
        counts = _count(logits, tokens, lengths - state, lengths)
        return where_possible(logits - self.value * counts, logits), state + 1


@processor_dataclass
class NoRepeatNgram(LogitsProcessor):
    """Forbid repeating any n-gram of size n. Paulus et al. 2017, section 2.5. Prompt tokens count.

    UserError: n below 1 or above 100: the program has a part for each token of an n-gram.
    """

    n: int = dataclasses.field(metadata={"static": True})

    def __post_init__(self):
        check(1 <= self.n <= 100, "no_repeat_ngram_size", self.n, "must be from 1 to 100. Take 3")

    def __call__(self, logits, tokens, lengths, state):
        follows = follows_newest(tokens, lengths, self.n - 1)
        rows = jnp.arange(len(tokens))[:, None]
        is_repeat = jnp.zeros(logits.shape, bool).at[rows, tokens].max(follows, mode="drop")
        return jnp.where(is_repeat, RULED_OUT, logits), state


@processor_dataclass
class BadWords(LogitsProcessor):
    """Bad words: forbid a new token that completes one of these token sequences, even if it begins in the prompt.

    UserError: an empty word, or an id below 0.
    """

    words: tuple[tuple[int, ...], ...]

    def __post_init__(self):
        check(all(self.words), "bad_words", self.words, "a word must have a token or more")
        check_ids("bad_words", sum(self.words, ()))

    def __call__(self, logits, tokens, lengths, state):
        words = jnp.asarray(self.words)  # [words, longest], -1 before the first id of a shorter word
        longest = words.shape[1]
        positions = lengths[:, None] - longest + 1 + jnp.arange(longest - 1)
        newest = jnp.take_along_axis(tokens, jnp.maximum(positions, 0), axis=1)
        is_in_text = (newest[:, None] == words[:, :-1]) & (positions >= 0)[:, None]
        would_end = jnp.all(is_in_text | (words[:, :-1] < 0), axis=-1)
        is_end = jnp.zeros(logits.shape, bool).at[:, words[:, -1]].max(would_end, mode="drop")
        return jnp.where(is_end, RULED_OUT, logits), state


@processor_dataclass
class ForceFirst(_CountsNewTokens):
    """Force the first new token, even if it was ruled out before; its logit is 0, a probability of 1."""

    token: int

    def __post_init__(self):
        check_ids("token", (self.token,))

    def __call__(self, logits, tokens, lengths, state):
        return jnp.where((state == 0)[:, None], _force(logits, self.token), logits), state + 1


@processor_dataclass
class ForceLast(LogitsProcessor):
    """Force the token at the length limit (number max_new_tokens), even if it was ruled out before; its logit is 0.

    The state is the number of tokens that still fit, int32 [R].
    """

    token: int

    def __post_init__(self):
        check_ids("token", (self.token,))

    def init_state(self, tokens, lengths, max_new_tokens):
        return jnp.full_like(lengths, max_new_tokens)

    def __call__(self, logits, tokens, lengths, state):
        return jnp.where((state == 1)[:, None], _force(logits, self.token), logits), state - 1


@processor_dataclass
class Suppress(LogitsProcessor):
    """Suppress tokens: none of these ids is generated. UserError: an id below 0."""

    ids: tuple[int, ...]

    def __post_init__(self):
        check_ids("ids", self.ids)

    def __call__(self, logits, tokens, lengths, state):
        return _rule_out(logits, self.ids), state


@processor_dataclass
class SuppressFirst(_CountsNewTokens):
    """Suppress tokens at one step: new token number `index` (0 is the first) is none of these ids.

    UserError: an id or index below 0.
    """

    ids: tuple[int, ...]
    index: int = 0

    def __post_init__(self):
        check_ids("ids", self.ids)
        check(self.index >= 0, "index", self.index, "must be 0, the first new token, or more")

    def __call__(self, logits, tokens, lengths, state):
        return jnp.where((state == self.index)[:, None], _rule_out(logits, self.ids), logits), state + 1


@processor_dataclass
class MinLength(_CountsNewTokens):
    """Minimum length: no token of `eos_ids` before there are `length` other new tokens, or in total with the prompt.

    UserError: a length or an id below 0.
    """

    length: int
    eos_ids: tuple[int, ...]
    counts_prompt: bool = False

    def __post_init__(self):
        check(0 <= self.length < 2**31, "min_length", self.length, "must be 0 or more, a number of 32 bits")
        check_ids("eos_ids", self.eos_ids)

    def __call__(self, logits, tokens, lengths, state):
        is_short = (lengths if self.counts_prompt else state) < self.length
        return jnp.where(is_short[:, None], _rule_out(logits, self.eos_ids), logits), state + 1


@dataclasses.dataclass(frozen=True)
class GenerationDefaults:
    """Generation defaults of a model: special tokens and logits processors, as in generation_config.json."""

    eos_ids: tuple[int, ...] = ()  # each one ends a row
    pad_id: int = 0
    start_id: int = -1  # Seq2Seq: the token before the first target token; -1: none
    processors: tuple[LogitsProcessor, ...] = ()  # applied to the logits of every decode step, in this order
