"""Methods that look at the text: penalties, repetition, forced and forbidden tokens. How they are called: logits.py.

What repeats is judged by prompt and new tokens together in RepetitionPenalty and NoRepeatNgram, as their papers (which know
decoders only) and the reference library have it; presence and frequency are counted among new tokens alone. In an
encoder-decoder the prompt is what the decoder was given, not the source.
"""

import dataclasses

import jax
import jax.numpy as jnp

from transformer_jax.sampling.logits_processors import RULED_OUT, LogitsProcessor, check, method, where_possible


class _Counting(LogitsProcessor):
    """The state is the number of new tokens so far, int32 [R]."""

    def start(self, tokens, lengths, max_new_tokens):
        return jnp.zeros_like(lengths)


def _count(logits, tokens, first, end):
    """How often each token of the vocabulary stands at the places `first` <= i < `end` [R]: int32 [R, V]."""
    place = jnp.arange(tokens.shape[1])
    is_counted = (place >= jnp.reshape(first, (-1, 1))) & (place < end[:, None])
    rows = jnp.arange(len(tokens))[:, None]
    return jnp.zeros(logits.shape, jnp.int32).at[rows, tokens].add(is_counted, mode="drop")


def follows_newest(tokens: jax.Array, lengths: jax.Array, n: int) -> jax.Array:
    """Whether the n tokens before a place of the text [R, S] are the n that the text ends with: bool [R, S]."""
    S, place = tokens.shape[1], jnp.arange(tokens.shape[1])
    is_match = (place >= n) & (place < lengths[:, None])
    for j in range(1, min(n, S - 1) + 1):  # the last but j - 1, at place i - j
        newest = jnp.take_along_axis(tokens, jnp.maximum(lengths - j, 0)[:, None], axis=1)
        is_match &= jnp.roll(tokens, j, axis=1) == newest
    return is_match


def _rule_out(logits, ids):
    """None of `ids` may come; those outside the vocabulary mean nothing."""
    return logits.at[:, jnp.array(ids, jnp.int32)].set(RULED_OUT, mode="drop")


def _check_ids(field, ids):
    check(all(token >= 0 for token in ids), field, ids, "must be token ids, 0 or more")


@method
class RepetitionPenalty(LogitsProcessor):
    """Make tokens of the prompt or the new text less likely. Keskar et al. 2019, section 4.1.

    A positive logit is divided by `value`, a negative one, which dividing would raise, multiplied. Prompt tokens count.
    UserError: a value outside [1e-3, 1e3].
    """

    value: float

    def __post_init__(self):
        check(1e-3 <= self.value <= 1e3, "repetition_penalty", self.value, "must be from 1e-3 to 1e3. Take 1.2")

    def __call__(self, logits, tokens, lengths, state):
        penalized = jnp.where(logits > 0, logits / self.value, logits * self.value)
        is_in_text = _count(logits, tokens, 0, lengths) > 0
        return where_possible(jnp.where(is_in_text, penalized, logits), logits), state


@method
class PresencePenalty(_Counting):
    """Subtract `value` from the logits of tokens that are among the new ones. Prompt tokens do not count.

    UserError: a value outside [-1e3, 1e3].
    """

    value: float

    def __post_init__(self):
        check(abs(self.value) <= 1e3, "presence_penalty", self.value, "must be from -1000 to 1000. Take 0 (none) to 2")

    def __call__(self, logits, tokens, lengths, state):
        is_there = _count(logits, tokens, lengths - state, lengths) > 0
        return where_possible(logits - self.value * is_there, logits), state + 1


@method
class FrequencyPenalty(_Counting):
    """Subtract `value` as often as a token is among the new ones. Prompt tokens do not count.

    UserError: a value outside [-1e3, 1e3].
    """

    value: float

    def __post_init__(self):
        check(abs(self.value) <= 1e3, "frequency_penalty", self.value, "must be from -1000 to 1000. Take 0 (none) to 2")

    def __call__(self, logits, tokens, lengths, state):
        number = _count(logits, tokens, lengths - state, lengths)
        return where_possible(logits - self.value * number, logits), state + 1


@method
class NoRepeatNgram(LogitsProcessor):
    """No n tokens in a row come twice. Paulus et al. 2017, section 2.5. Prompt tokens count. UserError: n below 1."""

    n: int

    def __post_init__(self):
        check(self.n >= 1, "no_repeat_ngram_size", self.n, "must be 1 or more. Take 3")

    def __call__(self, logits, tokens, lengths, state):
        followed, rows = follows_newest(tokens, lengths, self.n - 1), jnp.arange(len(tokens))[:, None]
        is_repeat = jnp.zeros(logits.shape, bool).at[rows, tokens].max(followed, mode="drop")
        return jnp.where(is_repeat, RULED_OUT, logits), state


@method
class BadWords(LogitsProcessor):
    """None of these sequences of tokens is completed by a new token; it may begin in the prompt.

    UserError: an empty word, or an id below 0.
    """

    words: tuple[tuple[int, ...], ...]

    def __post_init__(self):
        check(all(self.words), "bad_words", self.words, "a word must have a token or more")
        _check_ids("bad_words", sum(self.words, ()))

    def __call__(self, logits, tokens, lengths, state):
        for size in sorted({len(word) for word in self.words}):
            words = jnp.array([word for word in self.words if len(word) == size], jnp.int32)
            at = lengths[:, None] - size + 1 + jnp.arange(size - 1)
            newest = jnp.take_along_axis(tokens, jnp.maximum(at, 0), axis=1)
            would_end = jnp.all(newest[:, None] == words[:, :-1], axis=-1) & (lengths >= size - 1)[:, None]
            is_end = jnp.zeros(logits.shape, bool).at[:, words[:, -1]].max(would_end, mode="drop")
            logits = jnp.where(is_end, RULED_OUT, logits)
        return logits, state


@method
class ForceFirst(_Counting):
    """The first new token is this one, whatever else was ruled out; its logit is 0, a probability of 1."""

    token: int

    def __post_init__(self):
        _check_ids("token", (self.token,))

    def __call__(self, logits, tokens, lengths, state):
        return jnp.where((state == 0)[:, None], _only(logits, self.token), logits), state + 1


@method
class ForceLast(LogitsProcessor):
    """The last token that there is room for is this one, whatever else was ruled out; its logit is 0.

    The state is the number of tokens that there is room for, int32 [R].
    """

    token: int

    def __post_init__(self):
        _check_ids("token", (self.token,))

    def start(self, tokens, lengths, max_new_tokens):
        return jnp.full_like(lengths, max_new_tokens)

    def __call__(self, logits, tokens, lengths, state):
        return jnp.where((state == 1)[:, None], _only(logits, self.token), logits), state - 1


def _only(logits, token):
    return jnp.where(jnp.arange(logits.shape[-1]) == token, 0.0, RULED_OUT)


@method
class Suppress(LogitsProcessor):
    """No new token is one of these. UserError: an id below 0."""

    ids: tuple[int, ...]

    def __post_init__(self):
        _check_ids("ids", self.ids)

    def __call__(self, logits, tokens, lengths, state):
        return _rule_out(logits, self.ids), state


@method
class SuppressFirst(_Counting):
    """New token number `index` (0: the first) is none of these. UserError: an id or index below 0."""

    ids: tuple[int, ...]
    index: int = 0

    def __post_init__(self):
        _check_ids("ids", self.ids)
        check(self.index >= 0, "index", self.index, "must be 0, the first new token, or more")

    def __call__(self, logits, tokens, lengths, state):
        return jnp.where((state == self.index)[:, None], _rule_out(logits, self.ids), logits), state + 1


@method
class MinLength(_Counting):
    """None of `eos_ids` comes before there are `length` other new tokens, or tokens in all with the prompt.

    UserError: a length or an id below 0.
    """

    length: int
    eos_ids: tuple[int, ...]
    counts_prompt: bool = False

    def __post_init__(self):
        check(0 <= self.length < 2**31, "min_length", self.length, "must be 0 or more, a number of 32 bits")
        _check_ids("eos_ids", self.eos_ids)

    def __call__(self, logits, tokens, lengths, state):
        is_short = (lengths if self.counts_prompt else state) < self.length
        return jnp.where(is_short[:, None], _rule_out(logits, self.eos_ids), logits), state + 1


@dataclasses.dataclass(frozen=True)
class GenerationDefaults:
    """What a model itself says of the tokens that it writes: generation_config.json, for pre-trained ones."""

    eos_ids: tuple[int, ...] = ()  # each ends a row
    pad_id: int = 0
    start_id: int = -1  # Seq2Seq: the token before the first one of a target; -1: none
    processors: tuple[LogitsProcessor, ...] = ()  # what may come when
