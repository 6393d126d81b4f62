"""Speculative decoding: a draft model or prompt lookup proposes tokens, and the model verifies them in one pass.

Leviathan et al. 2023 and Chen et al. 2023 (draft model); Saxena 2023 (prompt lookup). This file knows no model:
`verify(tokens [B, T], is_token [B, T], cache) -> (logits at every position [B, T, V], cache)` is the model's step
(decode.py) with all logits, and `draft_step` is such a step of a smaller model. Caches are KVCaches.

Why a text has the model's own distribution, after all logits processors: token i of a row is a function of the text
before it and of the row's key for i alone, and given that text its distribution is the model's. Which tokens share a
pass, how many are drafted at a time and what the other rows do change only the number of model calls. To ensure this,
the token after the last drafted one is chosen like all others: with a draft of its own, which the model has not read.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.errors import check
from transformer_jax.nn.kv_cache import KVCache
from transformer_jax.sampling.decode import prefill
from transformer_jax.sampling.decode_state import DecodeState, GeneratedTokens, choose_tokens
from transformer_jax.sampling.drafts import NO_PROPOSAL, accept_drafts, draft_tokens

_STATIC = ("num_draft", "prompt_lookup", "choice", "eos_ids", "pad_id", "stop_sequences")


class SpeculativeState(NamedTuple):
    """State of speculative decoding beside the DecodeState: the draft model's cache, and counts of drafted tokens."""

    cache: KVCache | None  # of the draft model, with the same slots as the model's own
    num_drafted: jax.Array  # int32 [B]: tokens proposed to the model; one that it did not reach is proposed again
    num_accepted: jax.Array  # int32 [B]: drafted tokens that became part of the text


class SpeculativeResult(NamedTuple):
    """New tokens of each row, and how many of them were drafted and accepted."""

    generated: GeneratedTokens
    num_drafted: jax.Array  # int32 [B]
    num_accepted: jax.Array  # int32 [B]


@functools.partial(jax.jit, static_argnames=("max_new_tokens", "num_top", *_STATIC))
def speculate(
    step: Callable,
    verify: Callable,
    cache: KVCache,
    tokens: jax.Array,
    is_token: jax.Array,
    keys: jax.Array,
    first_index: jax.Array | int = 0,
    processors: tuple = (),
    states: tuple | None = None,
    draft_step: Callable | None = None,
    draft_cache: KVCache | None = None,
    *,
    num_draft: int,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    prompt_lookup: int = 0,
    choice: str = "sample",
    stop_sequences: tuple[tuple[int, ...], ...] = (),
    num_top: int = 0,
) -> SpeculativeResult:
    """Speculative `generate`, with fewer model calls: `prefill`, `prefill_speculative` and `decode_speculative` in one.

    Greedy, and with prompt_lookup, the tokens equal those of `generate`, except where another order of sums in the
    model changes a near tie. Sampled with a draft model they are other tokens of the same distribution.

    Args:
      step, verify: the model's, see the top of this file. The empty cache has T + max_new_tokens - 1 + num_draft slots
        or more. With more slots, rows with more accepted drafts can run further ahead of the others.
      draft_step, draft_cache: of a draft model with the same vocabulary, and as many slots; or none, and
      prompt_lookup: length of the n-gram to look up. The newest n tokens are searched for earlier in the text, and what
        followed them there is proposed.
      num_draft: tokens drafted for each call of the model.
      The others are those of `generate`.
    Raises:
      UserError: as `generate`; caches without slots (linear attention), or with too few; num_draft below 1; not exactly
        one of draft model and prompt lookup.
    """
    check(max_new_tokens >= 1, "max_new_tokens", max_new_tokens, "must be at least 1")
    min_capacity = tokens.shape[1] + max_new_tokens - 1 + num_draft
    for name, one in (("cache", cache), ("draft_cache", draft_cache or cache)):
        rule = f"must be at least {min_capacity} slots, for the prompts, the new tokens but one, and num_draft"
        check(one.capacity >= min_capacity or not one.capacity, f"{name}.capacity", one.capacity, rule)
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
    )
    speculative = prefill_speculative(tokens, is_token, draft_step, draft_cache)
    state, speculative = decode_speculative(
        verify,
        state,
        speculative,
        keys,
        max_new_tokens,
        max_new_tokens,
        first_index,
        processors,
        draft_step,
        num_draft=num_draft,
        prompt_lookup=prompt_lookup,
        eos_ids=eos_ids,
        pad_id=pad_id,
        choice=choice,
        stop_sequences=stop_sequences,
    )
    return SpeculativeResult(state.generated, speculative.num_drafted, speculative.num_accepted)


@jax.jit
def prefill_speculative(
    tokens: jax.Array,
    is_token: jax.Array,
    draft_step: Callable | None = None,
    draft_cache: KVCache | None = None,
    trailing_padding: jax.Array | int | None = None,
) -> SpeculativeState:
    """Prefill the draft model's cache with the prompts, if there is one. Arguments as in `prefill` and `speculate`."""
    if draft_step is not None:
        num_slots = 0 if trailing_padding is None else trailing_padding
        draft_cache = draft_step(tokens, is_token, draft_cache)[1].rewind(num_slots)
    zeros = jnp.zeros(len(tokens), jnp.int32)
    return SpeculativeState(draft_cache, zeros, zeros)


@functools.partial(jax.jit, static_argnames=_STATIC)
def decode_speculative(
    verify: Callable,
    state: DecodeState,
    speculative: SpeculativeState,
    keys: jax.Array,
    until: jax.Array | int,
    max_new_tokens: jax.Array | int,
    first_index: jax.Array | int = 0,
    processors: tuple = (),
    draft_step: Callable | None = None,
    *,
    num_draft: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    prompt_lookup: int = 0,
    choice: str = "sample",
    stop_sequences: tuple[tuple[int, ...], ...] = (),
) -> tuple[DecodeState, SpeculativeState]:
    """Speculative decode loop: draft and verify until each row has `until` new tokens or more, or has ended.

    Args:
      max_new_tokens: limit of new tokens of a row over all calls. The cache has room for them and num_draft more slots.
      The others are those of `decode` and `speculate`.
    """
    check(num_draft >= 1, "num_draft", num_draft, "must be at least 1")
    check(
        (draft_step is None) == (prompt_lookup >= 1),
        "prompt_lookup",
        prompt_lookup,
        "must be 1 or more without a draft model, and 0 with one",
    )
    choose_token = functools.partial(
        choose_tokens,
        keys=keys,
        first_index=first_index,
        processors=processors,
        eos_ids=eos_ids,
        pad_id=pad_id,
        stop_sequences=stop_sequences,
    )
    draft = functools.partial(
        draft_tokens,
        keys=keys,
        first_index=first_index,
        processors=processors,
        max_new_tokens=max_new_tokens,
        step=draft_step,
        prompt_lookup=prompt_lookup,
        num_draft=num_draft,
        choice=choice,
    )

    def has_active_rows(carry):
        state, _ = carry
        return jnp.any(~state.is_done & (state.generated.lengths < until))

    def draft_and_verify(carry):
        state, speculative = carry
        before = state.generated.lengths
        is_active = ~state.is_done & (before < max_new_tokens)
        token_buffer, drafts, draft_cache = draft(state, speculative.cache, is_active)
        # A row that runs ahead of the others leaves them slots without a token. It may, as long as the remaining slots
        # are enough for the row with the most tokens to go.
        num_to_go = jnp.max(jnp.where(is_active, max_new_tokens - before, 0))
        extra_slots = state.cache.capacity - state.cache.num_written - num_to_go - num_draft
        logits, cache = verify(drafts.inputs.T, drafts.is_token.T, state.cache)
        state = state._replace(token_buffer=token_buffer, cache=None)
        state, is_accepted = accept_drafts(
            state, drafts, logits, is_active, max_new_tokens, extra_slots, choose_token, choice
        )
        num_kept = state.generated.lengths - before
        if draft_step is not None:
            draft_cache = draft_cache.accept_prefix(num_kept, num_draft + 1)
        state = state._replace(cache=cache.accept_prefix(num_kept, num_draft + 1))
        is_proposed = drafts.is_token & (drafts.proposed != NO_PROPOSAL)
        num_drafted, num_accepted = (jnp.sum(x[:-1], axis=0, dtype=jnp.int32) for x in (is_proposed, is_accepted))
        return state, SpeculativeState(
            draft_cache, speculative.num_drafted + num_drafted, speculative.num_accepted + num_accepted
        )

    return jax.lax.while_loop(has_active_rows, draft_and_verify, (state, speculative))
