"""GenerationConfig, one token at a time, inside one compiled loop. No model here: only its step function.

`step(tokens [B, T], is_token [B, T], cache) -> (logits of each row's last token [B, V], cache)` is all
that is known of it. Pass a `jax.tree_util.Partial` over the parameters, so that they are arguments of the
compiled program and not constants in it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.errors import choose
from transformer_jax.nn.kv_cache import has_slots, rewind
from transformer_jax.sampling import logits_processors as transforms


def _greedy(logits, keys):
    return transforms.largest(logits, 1)[1][:, 0]


def _sample(logits, keys):
    return jax.vmap(jax.random.categorical)(keys, logits)


CHOICES = {"sample": _sample, "greedy": _greedy}  # of equals, greedy takes the smaller id
CHUNK = 256  # places of a prompt that are read at once


class Generated(NamedTuple):
    """What the rows go on with. Log-probabilities are natural, and the model's own: before any method."""

    tokens: jax.Array  # int32 [B, max_new_tokens]; EOS and stop sequences included, pad_id after the end
    lengths: jax.Array  # int32 [B]: new tokens, EOS included
    log_probs: jax.Array  # float32 [B, max_new_tokens] of each token; 0 after the end
    top_tokens: jax.Array  # int32 [B, max_new_tokens, num_top]: the likeliest at each place, likeliest first; or pad_id
    top_log_probs: jax.Array  # float32 [B, max_new_tokens, num_top]
    states: tuple  # of the processors, for a call that goes on


class DecodeState(NamedTuple):
    """Where a decode stands: `decode` goes on from it."""

    is_done: jax.Array  # bool [B]; who sets one ends that row
    text: jax.Array  # int32 [B, S]: prompts and new tokens, left-aligned
    prompt_lengths: jax.Array  # int32 [B]
    found: Generated  # of the tokens so far, with room for all
    cache: Any


@functools.partial(
    jax.jit, static_argnames=("max_new_tokens", "choice", "eos_ids", "pad_id", "stop_sequences", "num_top", "chunk")
)
def generate(
    step: Callable,
    cache: Any,
    tokens: jax.Array,
    is_token: jax.Array,
    keys: jax.Array,
    first_index: jax.Array | int = 0,
    processors: tuple = (),
    states: tuple | None = None,
    *,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    choice: str = "sample",
    stop_sequences: tuple[tuple[int, ...], ...] = (),
    num_top: int = 0,
    chunk: int = CHUNK,
) -> Generated:
    """Read the prompts, then choose up to `max_new_tokens` tokens for each row: `prefill` and `decode` in one.

    Args:
      step: see the top of this file. The cache must have room for T + max_new_tokens - 1 slots.
      tokens, is_token: prompts [B, T], padded on either side, at least one token in each row.
      keys: [B] PRNG keys. Token i of a row is drawn with fold_in(key of the row, first_index + i), so that
        neither the other rows nor a split into several calls change it.
      processors: what is done to the logits before a token is chosen, in this order: logits.py, rules.py, constrain.py.
      states: of the processors, where an earlier call ended (its `first_index` tokens are in the prompts); None: new.
      eos_ids: each ends a row: after it there is only `pad_id`. The loop stops when every row has ended. So does a
        row whose every token is ruled out.
      choice: a name in CHOICES.
      stop_sequences: each ends a row when its newest tokens, none of them the prompt's, are these.
      num_top: how many of the likeliest tokens to tell at each place.
      chunk: places of the prompts that are read at once; for a ring, what it was made for.
    Raises:
      UserError: max_new_tokens below 1, an unknown choice, num_top or an id below 0, an empty stop sequence.
    """
    transforms.check(max_new_tokens >= 1, "max_new_tokens", max_new_tokens, "must be at least 1")
    settings = dict(choice=choice, eos_ids=eos_ids, pad_id=pad_id, stop_sequences=stop_sequences)
    state = prefill(
        step,
        cache,
        tokens,
        is_token,
        keys,
        max_new_tokens,
        first_index,
        processors,
        states,
        num_places=max_new_tokens,
        text_size=tokens.shape[1] + max_new_tokens,
        num_top=num_top,
        chunk=chunk,
        **settings,
    )
    return decode(step, state, keys, max_new_tokens, first_index, processors, **settings).found


@functools.partial(
    jax.jit,
    static_argnames=("num_places", "text_size", "choice", "eos_ids", "pad_id", "stop_sequences", "num_top", "chunk"),
)
def prefill(
    step: Callable,
    cache: Any,
    tokens: jax.Array,
    is_token: jax.Array,
    keys: jax.Array,
    max_new_tokens: jax.Array | int,
    first_index: jax.Array | int = 0,
    processors: tuple = (),
    states: tuple | None = None,
    num_unused: jax.Array | int | None = None,
    *,
    num_places: int,
    text_size: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    choice: str = "sample",
    stop_sequences: tuple[tuple[int, ...], ...] = (),
    num_top: int = 0,
    chunk: int = CHUNK,
) -> DecodeState:
    """Read the prompts and choose the first token of each row. Only shapes are compiled in, not how many come.

    Args:
      max_new_tokens: that will be asked for; processors heed it.
      num_unused: columns at the end of `tokens` that are padding in every row; the cache gives their slots back.
      num_places: room for new tokens, max_new_tokens or more.
      text_size: room for the tokens of a row, its prompt's and the new ones.
      The others are those of `generate`.
    Raises:
      UserError: as `generate`.
    """
    transforms.check(num_top >= 0, "num_top", num_top, "must be at least 0")
    B = len(tokens)
    text, prompt_lengths = left_aligned(tokens, is_token, text_size - tokens.shape[1])
    if states is None:
        states = transforms.start(processors, text, prompt_lengths, max_new_tokens)
    logits, cache = read(step, cache, tokens, is_token, num_unused, chunk)
    padding = jnp.full((B, num_places, num_top), pad_id, jnp.int32)
    zeros = jnp.zeros((B, num_places), jnp.float32)
    found = Generated(
        jnp.full(zeros.shape, pad_id, jnp.int32),
        jnp.zeros(B, jnp.int32),
        zeros,
        padding,
        jnp.zeros(padding.shape, jnp.float32),
        states,
    )
    state = DecodeState(jnp.zeros(B, bool), text, prompt_lengths, found, cache)
    return choose_tokens(
        state,
        logits,
        keys,
        first_index,
        processors,
        choose(CHOICES, choice, "choice"),
        eos_ids=eos_ids,
        pad_id=pad_id,
        stop_sequences=stop_sequences,
    )


def read(
    step: Callable, cache: Any, tokens: jax.Array, is_token: jax.Array, num_unused: Any = None, chunk: int = CHUNK
) -> tuple[jax.Array, Any]:
    """Read prompts [B, T], at most `chunk` places at once: the memory that it takes does not grow with T.

    Args:
      num_unused: as `prefill`; chunks of nothing else are not read.
    Returns:
      Logits of each row's last token [B, V], and the cache.
    """
    T = tokens.shape[1]
    start = T if T <= chunk else T % chunk  # what fills no chunk comes first: behind the last place there may be none
    if start:
        logits, cache = step(tokens[:, :start], is_token[:, :start], cache)
    else:
        shape = jax.eval_shape(step, tokens[:, :chunk], is_token[:, :chunk], cache)[0]
        logits = jnp.zeros(shape.shape, shape.dtype)
    num_read, num_used = start, T if num_unused is None else T - num_unused
    if start < T:

        def one_chunk(carry):
            num_read, logits, cache = carry
            part, is_part = (jax.lax.dynamic_slice_in_dim(x, num_read, chunk, 1) for x in (tokens, is_token))
            newer, cache = step(part, is_part, cache)
            return num_read + chunk, jnp.where(jnp.any(is_part, axis=1, keepdims=True), newer, logits), cache

        carry = (jnp.int32(start), logits, cache)
        num_read, logits, cache = jax.lax.while_loop(lambda carry: carry[0] < num_used, one_chunk, carry)
    if num_unused is not None and has_slots(cache):  # padding leaves nothing in a cache without slots
        cache = rewind(cache, num_read - num_used)
    return logits, cache


@functools.partial(jax.jit, static_argnames=("choice", "eos_ids", "pad_id", "stop_sequences"))
def decode(
    step: Callable,
    state: DecodeState,
    keys: jax.Array,
    until: jax.Array | int,
    first_index: jax.Array | int = 0,
    processors: tuple = (),
    *,
    eos_ids: tuple[int, ...],
    pad_id: int,
    choice: str = "sample",
    stop_sequences: tuple[tuple[int, ...], ...] = (),
) -> DecodeState:
    """Choose tokens until there are `until` of them, or all rows have ended. Arguments as for `prefill`.

    One program serves every `until`, so that a decode in pieces gives bit for bit what one call gives.
    """

    choose_one = choose(CHOICES, choice, "choice")

    def go_on(state):
        return jnp.any(~state.is_done & (state.found.lengths < until))

    def one_token(state):
        logits, cache = step(newest_tokens(state), ~state.is_done[:, None], state.cache)
        state = state._replace(cache=cache)
        return choose_tokens(
            state,
            logits,
            keys,
            first_index,
            processors,
            choose_one,
            eos_ids=eos_ids,
            pad_id=pad_id,
            stop_sequences=stop_sequences,
        )

    return jax.lax.while_loop(go_on, one_token, state)


def newest_tokens(state: DecodeState) -> jax.Array:
    """The token that each row ends with, [B, 1]: the next one to be read."""
    return jnp.take_along_axis(state.found.tokens, jnp.maximum(state.found.lengths - 1, 0)[:, None], axis=1)


def keys_of_tokens(keys: jax.Array, index: jax.Array) -> jax.Array:
    """The key [B] of token number `index` [B] of each row, counted over all calls."""
    return jax.vmap(jax.random.fold_in)(keys, index)


def choose_tokens(
    state: DecodeState,
    logits: jax.Array,
    keys: jax.Array,
    first_index: jax.Array | int,
    processors: tuple,
    choose_one: Callable,
    *,
    eos_ids: tuple[int, ...],
    pad_id: int,
    stop_sequences: tuple[tuple[int, ...], ...],
) -> DecodeState:
    """One more token for each row that has not ended, from the model's logits [B, V].

    Args:
      choose_one: (logits after all processors [B, V], keys of the tokens [B]) -> tokens [B].
      The others are those of `generate`.
    """
    transforms.check(all(token >= 0 for token in eos_ids), "eos_ids", eos_ids, "must be token ids, 0 or more")
    transforms.check(all(stop_sequences), "stop_sequences", stop_sequences, "must have a token or more each")
    found, i, rows = state.found, state.found.lengths, jnp.arange(len(logits))
    logits, lengths = logits.astype(jnp.float32), state.prompt_lengths + i
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    logits, states = transforms.apply(processors, logits, state.text, lengths, found.states)
    is_done = state.is_done | jnp.all(logits <= transforms.RULED_OUT, axis=-1)
    token = choose_one(logits, keys_of_tokens(keys, first_index + i)).astype(jnp.int32)
    token = jnp.where(is_done, pad_id, token)  # behind the end of a row, where there is padding already
    log_prob = jnp.take_along_axis(log_probs, token[:, None], axis=1, mode="fill", fill_value=0.0)[:, 0]
    top_log_probs, top_tokens = transforms.largest(log_probs, found.top_tokens.shape[2])
    text = state.text.at[rows, lengths].set(token)
    found = Generated(
        found.tokens.at[rows, i].set(token),
        found.lengths + ~is_done,
        found.log_probs.at[rows, i].set(jnp.where(is_done, 0.0, log_prob)),
        found.top_tokens.at[rows, i].set(jnp.where(is_done[:, None], pad_id, top_tokens)),
        found.top_log_probs.at[rows, i].set(jnp.where(is_done[:, None], 0.0, top_log_probs)),
        states,
    )
    is_done |= jnp.isin(token, jnp.array(eos_ids, jnp.int32))
    for sequence in stop_sequences:
        at = lengths[:, None] + 1 - len(sequence) + jnp.arange(len(sequence))
        newest = jnp.take_along_axis(text, jnp.maximum(at, 0), axis=1)
        is_new = lengths + 1 - len(sequence) >= state.prompt_lengths - first_index
        is_done |= jnp.all(newest == jnp.array(sequence), axis=1) & is_new
    return state._replace(is_done=is_done, text=text, found=found)


def left_aligned(tokens: jax.Array, is_token: jax.Array, num_more: int) -> tuple[jax.Array, jax.Array]:
    """Texts [B, T + num_more], each from place 0 on and 0 beyond, and how many tokens they have [B]."""
    order = jnp.argsort(~jnp.asarray(is_token), axis=1, stable=True)
    tokens = jnp.take_along_axis(jnp.where(is_token, tokens, 0), order, axis=1).astype(jnp.int32)
    return jnp.pad(tokens, ((0, 0), (0, num_more))), jnp.sum(is_token, axis=1, dtype=jnp.int32)
