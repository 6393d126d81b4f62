"""Token-by-token decoding in compiled programs: prefill, decode loop, and both in one.

`step(tokens [B, T], is_token [B, T], cache) -> (logits of each row's last token [B, V], cache)` is all that is known of
the model. Pass a `jax.tree_util.Partial` over the parameters, so that they are arguments of the compiled program and
not constants in it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.errors import check, choose
from transformer_jax.sampling.decode_state import (
    CHOICES,
    DecodeState,
    GeneratedTokens,
    choose_tokens,
    left_aligned,
    newest_tokens,
)
from transformer_jax.sampling.logits_processors import init_states

PREFILL_CHUNK = 256  # prompt positions in one call of the step during prefill


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
    chunk: int = PREFILL_CHUNK,
) -> GeneratedTokens:
    """Generate up to `max_new_tokens` tokens for each row: `prefill` and `decode` in one program.

    Args:
      step: see the top of this file. The cache must have room for T + max_new_tokens - 1 slots.
      tokens, is_token: prompts [B, T], padded on either side, at least one token in each row.
      keys: [B] PRNG keys. Token i of a row is drawn with fold_in(key of the row, first_index + i), so that
        neither the other rows nor a split into several calls change it.
      processors: logits processors, applied in this order before a token is chosen: logits_processors.py,
        text_processors.py, constrained.py.
      states: of the processors, from the end of an earlier call (its `first_index` tokens are in the prompts); None:
        initial states.
      eos_ids: each ends a row: after it there is only `pad_id`. The loop stops when every row has ended. A row also
        ends when all its tokens are ruled out.
      choice: a name in CHOICES.
      stop_sequences: each ends a row when its newest tokens, none of them from the prompt, are these.
      num_top: number of most likely tokens to return at each position.
      chunk: prompt positions in one call of the step; for a rolling cache, at most the chunk it was made for.
    Raises:
      UserError: max_new_tokens below 1, an unknown choice, num_top or an id below 0, an empty stop sequence.
    """
    check(max_new_tokens >= 1, "max_new_tokens", max_new_tokens, "must be at least 1")
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
        output_length=max_new_tokens,
        buffer_length=tokens.shape[1] + max_new_tokens,
        eos_ids=eos_ids,
        pad_id=pad_id,
        choice=choice,
        stop_sequences=stop_sequences,
        num_top=num_top,
        chunk=chunk,
    )
    state = decode(
        step,
        state,
        keys,
        max_new_tokens,
        first_index,
        processors,
        eos_ids=eos_ids,
        pad_id=pad_id,
        choice=choice,
        stop_sequences=stop_sequences,
    )
    return state.generated


@functools.partial(
    jax.jit,
    static_argnames=(
        "output_length",
        "buffer_length",
        "choice",
        "eos_ids",
        "pad_id",
        "stop_sequences",
        "num_top",
        "chunk",
    ),
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
    trailing_padding: jax.Array | int | None = None,
    *,
    output_length: int,
    buffer_length: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    choice: str = "sample",
    stop_sequences: tuple[tuple[int, ...], ...] = (),
    num_top: int = 0,
    chunk: int = PREFILL_CHUNK,
) -> DecodeState:
    """Prefill: read the prompts into the cache and choose the first token of each row.

    Only shapes are compiled in: one program serves every `max_new_tokens`.

    Args:
      max_new_tokens: number of new tokens that will be generated; logits processors use it.
      trailing_padding: columns at the end of `tokens` that are padding in every row; the cache frees their slots.
      output_length: length of the output arrays, max_new_tokens or more.
      buffer_length: length of the token buffer that logits processors see: prompt and new tokens of a row.
      The others are those of `generate`.
    Raises:
      UserError: as `generate`.
    """
    check(num_top >= 0, "num_top", num_top, "must be at least 0")
    B = len(tokens)
    token_buffer, prompt_lengths = left_aligned(tokens, is_token, buffer_length - tokens.shape[1])
    if states is None:
        states = init_states(processors, token_buffer, prompt_lengths, max_new_tokens)
    logits, cache = chunked_prefill(step, cache, tokens, is_token, trailing_padding, chunk)
    top_tokens = jnp.full((B, output_length, num_top), pad_id, jnp.int32)
    log_probs = jnp.zeros((B, output_length), jnp.float32)
    generated = GeneratedTokens(
        tokens=jnp.full(log_probs.shape, pad_id, jnp.int32),
        lengths=jnp.zeros(B, jnp.int32),
        log_probs=log_probs,
        top_tokens=top_tokens,
        top_log_probs=jnp.zeros(top_tokens.shape, jnp.float32),
        states=states,
    )
    state = DecodeState(jnp.zeros(B, bool), token_buffer, prompt_lengths, generated, cache)
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


def chunked_prefill(
    step: Callable,
    cache: Any,
    tokens: jax.Array,
    is_token: jax.Array,
    trailing_padding: jax.Array | int | None = None,
    chunk: int = PREFILL_CHUNK,
) -> tuple[jax.Array, Any]:
    """Chunked prefill: read prompts [B, T], at most `chunk` positions a call, in memory that does not grow with T.

    Args:
      trailing_padding: as in `prefill`; chunks that have nothing else are not read.
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
    num_read: jax.Array | int = start
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
    """Decode loop: decode steps until each row has `until` new tokens or has ended. Arguments as for `prefill`.

    One program serves every `until`, so that decoding in several calls gives bit for bit the result of one call.
    """
    choose_one = choose(CHOICES, choice, "choice")

    def has_active_rows(state):
        return jnp.any(~state.is_done & (state.generated.lengths < until))

    def decode_step(state):
        logits, cache = step(newest_tokens(state), ~state.is_done[:, None], state.cache)
        return choose_tokens(
            state._replace(cache=cache),
            logits,
            keys,
            first_index,
            processors,
            choose_one,
            eos_ids=eos_ids,
            pad_id=pad_id,
            stop_sequences=stop_sequences,
        )

    return jax.lax.while_loop(has_active_rows, decode_step, state)
