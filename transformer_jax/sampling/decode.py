"""Token-by-token decoding in compiled programs: prefill, decode loop, both in one, and more tokens for a chat turn.

All take (step, cache or state, prompts, params, spec): spec.py describes the step, the prompts, the numbers and the
static settings. The model is known by its step alone.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.nn.kv_cache import KVCache
from transformer_jax.sampling.logits_processors import RULED_OUT, apply_processors, init_states
from transformer_jax.sampling.spec import METHODS, DecodeSpec, Integer, Prompts, SamplingParams, Step
from transformer_jax.sampling.top_k import largest


class GeneratedTokens(NamedTuple):
    """New tokens of each row, with natural log-probabilities of the model itself, before any logits processor."""

    tokens: jax.Array  # int32 [B, max_new_tokens]; EOS and stop sequences included, pad_id after the end
    lengths: jax.Array  # int32 [B]: new tokens, EOS included
    log_probs: jax.Array  # float32 [B, max_new_tokens] of each token; 0 after the end
    top_tokens: jax.Array  # int32 [B, max_new_tokens, num_top], the most likely first; pad_id after the end
    top_log_probs: jax.Array  # float32 [B, max_new_tokens, num_top]
    states: tuple  # of the logits processors, for a call that continues these rows


class DecodeState(NamedTuple):
    """State of a decode loop, from which `decode` continues."""

    is_done: jax.Array  # bool [B]; set an entry to end that row
    token_buffer: jax.Array  # int32 [B, S]: prompts and new tokens, left-aligned
    prompt_lengths: jax.Array  # int32 [B]
    first_index: jax.Array  # int32 [B]: new tokens of an earlier call that are part of the prompts
    generated: GeneratedTokens  # the new tokens so far, in arrays of the full length
    cache: KVCache


@jax.jit
def generate(step: Step, cache: KVCache, prompts: Prompts, params: SamplingParams, spec: DecodeSpec) -> GeneratedTokens:
    """Generate up to `spec.max_new_tokens` tokens for each row: `prefill` and `decode` in one program.

    The loop stops when every row has ended: by an EOS id, by a stop sequence, or where all tokens are ruled out.

    Args:
      cache: empty, with room for T + max_new_tokens - 1 slots.
    """
    state = prefill(step, cache, prompts, params, spec)
    return decode(step, state, params, spec, spec.max_new_tokens).generated


@jax.jit
def prefill(step: Step, cache: KVCache, prompts: Prompts, params: SamplingParams, spec: DecodeSpec) -> DecodeState:
    """Prefill: read the prompts into the cache and choose the first token of each row.

    Only shapes and the spec are compiled in: one program serves every `params.limit`.
    """
    tokens = jnp.asarray(prompts.tokens)
    is_token = jnp.asarray(prompts.is_token)
    token_buffer, lengths = text_buffer(prompts, spec)
    logits, cache = chunked_prefill(step, cache, tokens, is_token, prompts.trailing_padding, spec.chunk)
    return _first_tokens(cache, logits, token_buffer, lengths, prompts, params, spec)


@jax.jit
def extend(step: Step, state: DecodeState, prompts: Prompts, params: SamplingParams, spec: DecodeSpec) -> DecodeState:
    """Extend rows that have decoded with more given tokens, and choose the next token of each: a chat turn.

    The result is that of `prefill` on the whole text, but only the given tokens are read, and the newest one, which the
    model has not read yet. The new tokens so far become part of the prompts. Rows that had ended continue.

    Args:
      state: with room in its cache, and in its token buffer, for the given tokens and the new ones.
      prompts: the given tokens; a row may have none, unless it ended because all tokens were ruled out.
    """
    rows = jnp.arange(len(state.token_buffer))[:, None]
    lengths = state.prompt_lengths + state.generated.lengths
    is_unread = state.cache.num_tokens - spec.num_virtual < lengths[:, None]
    tokens = jnp.concatenate([jnp.take_along_axis(state.token_buffer, lengths[:, None] - 1, axis=1), prompts.tokens], 1)
    is_token = jnp.concatenate([is_unread, prompts.is_token], axis=1)
    given, num_given = left_aligned(prompts.tokens, prompts.is_token, 0)
    positions = lengths[:, None] + jnp.arange(given.shape[1])
    token_buffer = state.token_buffer.at[rows, positions].set(given, mode="drop")
    logits, cache = chunked_prefill(step, state.cache, tokens, is_token, prompts.trailing_padding, spec.chunk)
    return _first_tokens(cache, logits, token_buffer, lengths + num_given, prompts, params, spec)


def _first_tokens(cache, logits, token_buffer, prompt_lengths, prompts, params, spec):
    """Choose the first token of each row: the state after the prompts, from their logits [B, V]."""
    state = initial_state(cache, token_buffer, prompt_lengths, params, spec, prompts.states)
    state = state._replace(first_index=state.first_index + prompts.first_index)
    return choose_tokens(state, logits, params, spec, METHODS[spec.method])


def initial_state(
    cache: KVCache,
    token_buffer: jax.Array,
    prompt_lengths: jax.Array,
    params: SamplingParams,
    spec: DecodeSpec,
    states: tuple | None = None,
) -> DecodeState:
    """State of rows without a new token; `states` of the logits processors, None for their initial ones."""
    B = len(token_buffer)
    if states is None:
        limit = spec.max_new_tokens if params.limit is None else params.limit
        states = init_states(params.processors, token_buffer, prompt_lengths, limit)
    top_tokens = jnp.full((B, spec.max_new_tokens, spec.num_top), spec.pad_id, jnp.int32)
    log_probs = jnp.zeros((B, spec.max_new_tokens), jnp.float32)
    generated = GeneratedTokens(
        tokens=jnp.full(log_probs.shape, spec.pad_id, jnp.int32),
        lengths=jnp.zeros(B, jnp.int32),
        log_probs=log_probs,
        top_tokens=top_tokens,
        top_log_probs=jnp.zeros(top_tokens.shape, jnp.float32),
        states=states,
    )
    first_index = jnp.zeros(B, jnp.int32)
    return DecodeState(jnp.zeros(B, bool), token_buffer, prompt_lengths, first_index, generated, cache)


def chunked_prefill(
    step: Step, cache: KVCache, tokens: jax.Array, is_token: jax.Array, trailing_padding: Integer | None, chunk: int
) -> tuple[jax.Array, KVCache]:
    """Chunked prefill: read prompts [B, T], at most `chunk` positions a call, in memory that does not grow with T.

    Args:
      trailing_padding: see Prompts; chunks that have nothing else are not read.
    Returns:
      Logits of each row's last token [B, V], and the cache.
    """
    T = tokens.shape[1]
    # The incomplete chunk comes first, because the model may have no positions after the last one.
    start = T if T <= chunk else T % chunk
    if start:
        logits, cache = step(tokens[:, :start], is_token[:, :start], cache)
    else:
        shape = jax.eval_shape(step, tokens[:, :chunk], is_token[:, :chunk], cache)[0]
        logits = jnp.zeros(shape.shape, shape.dtype)
    num_read: Integer = start
    num_used = T if trailing_padding is None else T - trailing_padding
    if start < T:

        def has_unread_chunk(carry):
            return carry[0] < num_used

        def read_chunk(carry):
            num_read, logits, cache = carry
            chunk_tokens, chunk_is_token = (
                jax.lax.dynamic_slice_in_dim(x, num_read, chunk, 1) for x in (tokens, is_token)
            )
            new_logits, cache = step(chunk_tokens, chunk_is_token, cache)
            num_read += chunk
            return num_read, jnp.where(jnp.any(chunk_is_token, axis=1, keepdims=True), new_logits, logits), cache

        carry = (jnp.int32(start), logits, cache)
        num_read, logits, cache = jax.lax.while_loop(has_unread_chunk, read_chunk, carry)
    if trailing_padding is not None:
        cache = cache.drop_padding(num_read - num_used)
    return logits, cache


@jax.jit
def decode(step: Step, state: DecodeState, params: SamplingParams, spec: DecodeSpec, until: Integer) -> DecodeState:
    """Decode loop: decode steps until each row has `until` new tokens or has ended.

    One program serves every `until`, so that decoding in several calls gives bit for bit the result of one call.
    """

    def has_active_rows(state):
        return jnp.any(~state.is_done & (state.generated.lengths < until))

    one_step = functools.partial(decode_step, step, params=params, spec=spec)
    return jax.lax.while_loop(has_active_rows, one_step, state)


def decode_step(step: Step, state: DecodeState, params: SamplingParams, spec: DecodeSpec) -> DecodeState:
    """Read the newest token of each row that has not ended, and choose the next one."""
    logits, cache = step(newest_tokens(state), ~state.is_done[:, None], state.cache)
    return choose_tokens(state._replace(cache=cache), logits, params, spec, METHODS[spec.method])


def choose_tokens(
    state: DecodeState,
    logits: jax.Array,
    params: SamplingParams,
    spec: DecodeSpec,
    choose_one: Callable[[jax.Array, jax.Array], jax.Array],
) -> DecodeState:
    """Choose the next token of each row that has not ended, from the model's logits [B, V].

    Args:
      choose_one: (logits after all processors [B, V], keys of the tokens [B]) -> tokens [B].
    """
    generated = state.generated
    i = generated.lengths
    rows = jnp.arange(len(logits))
    logits = logits.astype(jnp.float32)
    lengths = state.prompt_lengths + i
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    logits, states = apply_processors(params.processors, logits, state.token_buffer, lengths, generated.states)
    is_done = state.is_done | jnp.all(logits <= RULED_OUT, axis=-1)
    token = choose_one(logits, fold_in_index(params.keys, state.first_index + i)).astype(jnp.int32)
    token = jnp.where(is_done, spec.pad_id, token)  # written after the end of a row, where padding is already
    log_prob = jnp.take_along_axis(log_probs, token[:, None], axis=1, mode="fill", fill_value=0.0)[:, 0]
    top_log_probs, top_tokens = largest(log_probs, spec.num_top)
    token_buffer = state.token_buffer.at[rows, lengths].set(token)
    generated = GeneratedTokens(
        generated.tokens.at[rows, i].set(token),
        generated.lengths + ~is_done,
        generated.log_probs.at[rows, i].set(jnp.where(is_done, 0.0, log_prob)),
        generated.top_tokens.at[rows, i].set(jnp.where(is_done[:, None], spec.pad_id, top_tokens)),
        generated.top_log_probs.at[rows, i].set(jnp.where(is_done[:, None], 0.0, top_log_probs)),
        states,
    )
    is_done |= jnp.isin(token, jnp.array(spec.eos_ids, jnp.int32))
    for sequence in spec.stop_sequences:
        positions = lengths[:, None] + 1 - len(sequence) + jnp.arange(len(sequence))
        newest = jnp.take_along_axis(token_buffer, jnp.maximum(positions, 0), axis=1)
        is_new = lengths + 1 - len(sequence) >= state.prompt_lengths - state.first_index
        is_done |= jnp.all(newest == jnp.array(sequence), axis=1) & is_new
    return state._replace(is_done=is_done, token_buffer=token_buffer, generated=generated)


def newest_tokens(state: DecodeState) -> jax.Array:
    """Return the newest token of each row [B, 1], the input of the next decode step."""
    last = jnp.maximum(state.generated.lengths - 1, 0)
    return jnp.take_along_axis(state.generated.tokens, last[:, None], axis=1)


def fold_in_index(keys: jax.Array, index: jax.Array) -> jax.Array:
    """Fold the token index [B], counted over all calls, into the PRNG key of each row [B]."""
    return jax.vmap(jax.random.fold_in)(keys, index)


def text_buffer(prompts: Prompts, spec: DecodeSpec) -> tuple[jax.Array, jax.Array]:
    """Token buffer [B, S] with the texts of the prompts, left-aligned, and room for new tokens; lengths [B]."""
    num_before = 0 if prompts.before is None else len(prompts.before)
    num_given = num_before + prompts.tokens.shape[1]
    num_extra = spec.buffer_length - num_given if spec.buffer_length else spec.max_new_tokens
    token_buffer, lengths = left_aligned(prompts.tokens, prompts.is_token, num_extra)
    if prompts.before is None:
        return token_buffer, lengths
    before = jnp.broadcast_to(jnp.asarray(prompts.before, jnp.int32), (len(token_buffer), num_before))
    return jnp.concatenate([before, token_buffer], axis=1), lengths + num_before


def left_aligned(
    tokens: jax.Array | np.ndarray, is_token: jax.Array | np.ndarray, num_extra: int
) -> tuple[jax.Array, jax.Array]:
    """Left-align prompts [B, T] in a token buffer [B, T + num_extra], 0 after the end: (buffer, lengths [B])."""
    order = jnp.argsort(~jnp.asarray(is_token), axis=1, stable=True)
    tokens = jnp.take_along_axis(jnp.where(is_token, tokens, 0), order, axis=1).astype(jnp.int32)
    return jnp.pad(tokens, ((0, 0), (0, num_extra))), jnp.sum(is_token, axis=1, dtype=jnp.int32)


def where_rows(is_row: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """Take rows [R, ...] from `new` where `is_row` [R], else from `old`."""
    return jnp.where(is_row.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
