"""Drafted tokens of speculative decoding: draft model, prompt lookup, and acceptance by the model's own logits."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.nn.kv_cache import KVCache
from transformer_jax.sampling.decode import DecodeState, choose_tokens, fold_in_index, newest_tokens, where_rows
from transformer_jax.sampling.logits_processors import apply_processors
from transformer_jax.sampling.spec import METHODS, DecodeSpec, SamplingParams, Step
from transformer_jax.sampling.text_processors import follows_newest

NO_PROPOSAL = -1  # in place of a drafted token
_DRAFT, _ACCEPT, _REPLACE = 1, 2, 3  # uses of a token's key; each is folded into it


class Drafts(NamedTuple):
    """Inputs of a verification pass, and the token proposed after each: k + 1 positions for k drafted tokens."""

    inputs: jax.Array  # int32 [k + 1, B]: the newest token of each row, then the drafted ones
    is_token: jax.Array  # bool [k + 1, B]
    proposed: jax.Array  # int32 [k + 1, B]: the token after each input; NO_PROPOSAL: none
    logits: jax.Array | None  # float32 [k + 1, B, V] it was sampled from, after all processors; None: not sampled


def draft_tokens(
    step: Step | None,
    state: DecodeState,
    cache: KVCache | None,
    is_active: jax.Array,
    params: SamplingParams,
    spec: DecodeSpec,
) -> tuple[jax.Array, Drafts, KVCache | None]:
    """Draft tokens: the token buffer with drafted tokens appended, the Drafts, and the draft model's cache.

    Args:
      step, cache: of the draft model; None: prompt lookup.
    """
    num_new = state.generated.lengths
    rows = jnp.arange(len(state.token_buffer))

    def draft_one(carry, i):
        token, is_token, token_buffer, states, cache = carry
        is_token &= num_new + i < params.limit  # the model may have no position for a token beyond the last one
        lengths = state.prompt_lengths + num_new + i
        if step is None:
            drafted = look_up_tokens(token_buffer, lengths, spec.prompt_lookup)
            logits = None
        else:
            logits, cache = step(token[:, None], is_token[:, None], cache)
            logits = logits.astype(jnp.float32)
            logits, states = apply_processors(params.processors, logits, token_buffer, lengths, states)
            keys = fold_in_index(params.keys, state.first_index + num_new + i)
            drafted = METHODS[spec.method](logits, fold_in_index(keys, jnp.full_like(num_new, _DRAFT)))
            drafted = drafted.astype(jnp.int32)
        next_token = jnp.maximum(drafted, 0)
        next_is_token = is_token & (drafted != NO_PROPOSAL)
        token_buffer = token_buffer.at[rows, lengths].set(next_token)
        carry = next_token, next_is_token, token_buffer, states, cache
        return carry, Drafts(token, is_token, drafted, logits if spec.method == "sample" else None)

    carry = newest_tokens(state)[:, 0], is_active, state.token_buffer, state.generated.states, cache
    (_, _, token_buffer, _, cache), drafts = jax.lax.scan(draft_one, carry, jnp.arange(spec.num_draft + 1))
    return token_buffer, drafts, cache


def look_up_tokens(tokens, lengths, n):
    """Prompt lookup: the token [B] after the latest earlier occurrence of the newest n tokens, or NO_PROPOSAL."""
    follows = follows_newest(tokens, lengths, n)
    latest = tokens.shape[1] - 1 - jnp.argmax(follows[:, ::-1], axis=1)
    token = jnp.take_along_axis(tokens, latest[:, None], axis=1)[:, 0]
    return jnp.where(jnp.any(follows, axis=1), token, NO_PROPOSAL)


def accept_drafts(
    state: DecodeState,
    drafts: Drafts,
    logits: jax.Array,
    is_active: jax.Array,
    extra_slots: jax.Array,
    params: SamplingParams,
    spec: DecodeSpec,
) -> tuple[DecodeState, jax.Array]:
    """Accept drafted tokens position by position: a row stays active while its chosen token is the proposed one.

    Returns the DecodeState after that, and where a proposed token was accepted, bool [k + 1, B].
    """

    def accept_one(carry, position):
        state, is_active, limit = carry
        i, logits, proposed, draft_logits = position
        choose_one = METHODS[spec.method]
        if draft_logits is not None:
            choose_one = functools.partial(_accept_or_replace, proposed, draft_logits)
        after = choose_tokens(state, logits, params, spec, choose_one)
        is_longer = is_active & (after.generated.lengths > state.generated.lengths)
        state = jax.tree.map(functools.partial(where_rows, is_active), after, state)
        is_accepted = is_longer & (newest_tokens(state)[:, 0] == proposed)
        may_continue = is_active & ~state.is_done & (state.generated.lengths < params.limit)
        # The first row with a refused token limits how far the others may run ahead of it.
        has_refused = jnp.any(may_continue & ~is_accepted)
        limit = jnp.where(has_refused, jnp.minimum(limit, i + 1 + jnp.maximum(extra_slots, 0)), limit)
        return (state, may_continue & is_accepted & (i + 1 < limit), limit), is_accepted

    num_positions = len(drafts.inputs)
    positions = jnp.arange(num_positions), jnp.swapaxes(logits, 0, 1), drafts.proposed, drafts.logits
    (state, _, _), is_accepted = jax.lax.scan(accept_one, (state, is_active, jnp.int32(num_positions)), positions)
    return state, is_accepted


def _accept_or_replace(proposed, draft_logits, logits, keys):
    """Rejection sampling: turn proposed tokens, drawn from q, into tokens drawn from p. Leviathan et al. 2023, 2.3.

    A proposed token is accepted with probability min(1, p / q), and otherwise replaced by one from max(p - q, 0).
    """
    p, q = jax.nn.softmax(logits, axis=-1), jax.nn.softmax(draft_logits, axis=-1)
    p_proposed, q_proposed = (jnp.take_along_axis(x, proposed[:, None], axis=1)[:, 0] for x in (p, q))
    accept_keys, replace_keys = (fold_in_index(keys, jnp.full_like(proposed, use)) for use in (_ACCEPT, _REPLACE))
    is_accepted = jax.vmap(jax.random.uniform)(accept_keys) * q_proposed < p_proposed
    residual = jnp.maximum(p - q, 0.0)
    # Where p = q up to rounding, the residual is all zero.
    residual = jnp.where(jnp.sum(residual, axis=-1, keepdims=True) > 0, residual, p)
    replacement = jax.vmap(jax.random.categorical)(replace_keys, jnp.log(residual))
    return jnp.where(is_accepted, proposed, replacement)
