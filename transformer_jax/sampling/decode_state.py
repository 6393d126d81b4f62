"""State of a decode loop, and its update by one token: logits processors, choice of a token, stop conditions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.errors import check
from transformer_jax.sampling.logits_processors import RULED_OUT, apply_processors
from transformer_jax.sampling.top_k import largest


def _greedy(logits, keys):
    return largest(logits, 1)[1][:, 0]


def _sample(logits, keys):
    return jax.vmap(jax.random.categorical)(keys, logits)


CHOICES = {"sample": _sample, "greedy": _greedy}  # greedy: ties go to the smaller id


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
    generated: GeneratedTokens  # the new tokens so far, in arrays of the full length
    cache: Any


def newest_tokens(state: DecodeState) -> jax.Array:
    """Return the newest token of each row [B, 1], the input of the next decode step."""
    last = jnp.maximum(state.generated.lengths - 1, 0)
    return jnp.take_along_axis(state.generated.tokens, last[:, None], axis=1)


def fold_in_index(keys: jax.Array, index: jax.Array) -> jax.Array:
    """Fold the token index [B], counted over all calls, into the PRNG key of each row [B]."""
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
    """Choose the next token of each row that has not ended, from the model's logits [B, V].

    Args:
      choose_one: (logits after all processors [B, V], keys of the tokens [B]) -> tokens [B].
      The others are those of `generate`.
    """
    check(all(token >= 0 for token in eos_ids), "eos_ids", eos_ids, "must be token ids, 0 or more")
    check(all(stop_sequences), "stop_sequences", stop_sequences, "must have a token or more each")
    generated = state.generated
    i = generated.lengths
    rows = jnp.arange(len(logits))
    logits = logits.astype(jnp.float32)
    lengths = state.prompt_lengths + i
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    logits, states = apply_processors(processors, logits, state.token_buffer, lengths, generated.states)
    is_done = state.is_done | jnp.all(logits <= RULED_OUT, axis=-1)
    token = choose_one(logits, fold_in_index(keys, first_index + i)).astype(jnp.int32)
    token = jnp.where(is_done, pad_id, token)  # written after the end of a row, where padding is already
    log_prob = jnp.take_along_axis(log_probs, token[:, None], axis=1, mode="fill", fill_value=0.0)[:, 0]
    top_log_probs, top_tokens = largest(log_probs, generated.top_tokens.shape[2])
    token_buffer = state.token_buffer.at[rows, lengths].set(token)
    generated = GeneratedTokens(
        generated.tokens.at[rows, i].set(token),
        generated.lengths + ~is_done,
        generated.log_probs.at[rows, i].set(jnp.where(is_done, 0.0, log_prob)),
        generated.top_tokens.at[rows, i].set(jnp.where(is_done[:, None], pad_id, top_tokens)),
        generated.top_log_probs.at[rows, i].set(jnp.where(is_done[:, None], 0.0, top_log_probs)),
        states,
    )
    is_done |= jnp.isin(token, jnp.array(eos_ids, jnp.int32))
    for sequence in stop_sequences:
        positions = lengths[:, None] + 1 - len(sequence) + jnp.arange(len(sequence))
        newest = jnp.take_along_axis(token_buffer, jnp.maximum(positions, 0), axis=1)
        is_new = lengths + 1 - len(sequence) >= state.prompt_lengths - first_index
        is_done |= jnp.all(newest == jnp.array(sequence), axis=1) & is_new
    return state._replace(is_done=is_done, token_buffer=token_buffer, generated=generated)


def left_aligned(tokens: jax.Array, is_token: jax.Array, num_extra: int) -> tuple[jax.Array, jax.Array]:
    """Left-align prompts [B, T] in a token buffer [B, T + num_extra], 0 after the end: (buffer, lengths [B])."""
    order = jnp.argsort(~jnp.asarray(is_token), axis=1, stable=True)
    tokens = jnp.take_along_axis(jnp.where(is_token, tokens, 0), order, axis=1).astype(jnp.int32)
    return jnp.pad(tokens, ((0, 0), (0, num_extra))), jnp.sum(is_token, axis=1, dtype=jnp.int32)


def where_rows(is_row: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """Take rows [R, ...] from `new` where `is_row` [R], else from `old`."""
    return jnp.where(is_row.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
