"""Speculative decoding: a draft model or prompt lookup proposes tokens, and the model verifies them in one pass.

Leviathan et al. 2023 and Chen et al. 2023 (draft model); Saxena 2023 (prompt lookup). This file knows no model:
`verify(tokens [B, T], is_token [B, T], cache) -> (logits at every position [B, T, V], cache)` is the model's step
(spec.py) with all logits, and `draft_step` is such a step of a smaller model.

Why a text has the model's own distribution, after all logits processors: token i of a row is a function of the text
before it and of the row's key for i alone, and given that text its distribution is the model's. Which tokens share a
pass, how many are drafted at a time and what the other rows do change only the number of model calls. To ensure this,
the token after the last drafted one is chosen like all others: with a draft of its own, which the model has not read.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.errors import check
from transformer_jax.nn.kv_cache import KVCache
from transformer_jax.sampling.decode import DecodeState, GeneratedTokens, prefill
from transformer_jax.sampling.drafts import NO_PROPOSAL, accept_drafts, draft_tokens
from transformer_jax.sampling.spec import DecodeSpec, Integer, Prompts, SamplingParams, Step


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


@jax.jit
def speculate(
    step: Step,
    verify: Step,
    cache: KVCache,
    prompts: Prompts,
    params: SamplingParams,
    spec: DecodeSpec,
    draft_step: Step | None = None,
    draft_cache: KVCache | None = None,
) -> SpeculativeResult:
    """Speculative `generate`, with fewer model calls: `prefill`, `prefill_speculative` and `decode_speculative` in one.

    Greedy, and with spec.prompt_lookup, the tokens equal those of `generate`, except where another order of sums in the
    model changes a near tie. Sampled with a draft model they are other tokens of the same distribution.

    Args:
      step, verify: the model's, see the top of this file. The empty cache has T + max_new_tokens - 1 + num_draft slots
        or more. With more slots, rows with more accepted drafts can run further ahead of the others.
      draft_step, draft_cache: of a draft model with the same vocabulary, and as many slots; or none, and prompt lookup:
        the newest n = spec.prompt_lookup tokens are searched for earlier in the text, and what followed them there is
        proposed.
    Raises:
      UserError: caches without slots (linear attention), or with too few; num_draft below 1; not exactly one of draft
        model and prompt lookup.
    """
    min_capacity = prompts.tokens.shape[1] + spec.max_new_tokens - 1 + spec.num_draft
    for name, one in (("cache", cache), ("draft_cache", draft_cache or cache)):
        rule = f"must be at least {min_capacity} slots, for the prompts, the new tokens but one, and num_draft"
        check(one.capacity >= min_capacity or not one.capacity, f"{name}.capacity", one.capacity, rule)
    params = params._replace(limit=spec.max_new_tokens)
    state = prefill(step, cache, prompts, params, spec)
    speculative = prefill_speculative(prompts, draft_step, draft_cache)
    state, speculative = decode_speculative(verify, state, speculative, params, spec, spec.max_new_tokens, draft_step)
    return SpeculativeResult(state.generated, speculative.num_drafted, speculative.num_accepted)


@jax.jit
def prefill_speculative(
    prompts: Prompts, draft_step: Step | None = None, draft_cache: KVCache | None = None
) -> SpeculativeState:
    """Prefill the draft model's cache with the prompts, if there is one. Arguments as in `prefill` and `speculate`."""
    if draft_step is not None:
        assert draft_cache is not None
        tokens = jnp.asarray(prompts.tokens)
        _, draft_cache = draft_step(tokens, jnp.asarray(prompts.is_token), draft_cache)
        if prompts.trailing_padding is not None:
            draft_cache = draft_cache.rewind(jnp.asarray(prompts.trailing_padding))
    zeros = jnp.zeros(len(prompts.tokens), jnp.int32)
    return SpeculativeState(draft_cache, zeros, zeros)


@jax.jit
def decode_speculative(
    verify: Step,
    state: DecodeState,
    speculative: SpeculativeState,
    params: SamplingParams,
    spec: DecodeSpec,
    until: Integer,
    draft_step: Step | None = None,
) -> tuple[DecodeState, SpeculativeState]:
    """Speculative decode loop: draft and verify until each row has `until` new tokens or more, or has ended.

    Args:
      params: its limit is given; the cache has room for as many new tokens, and for num_draft more slots.
      The others are those of `decode` and `speculate`.
    """
    check(spec.num_draft >= 1, "num_draft", spec.num_draft, "must be at least 1")
    check(
        (draft_step is None) == (spec.prompt_lookup >= 1),
        "prompt_lookup",
        spec.prompt_lookup,
        "must be 1 or more without a draft model, and 0 with one",
    )

    def has_active_rows(carry):
        state, _ = carry
        return jnp.any(~state.is_done & (state.generated.lengths < until))

    def draft_and_verify(carry):
        state, speculative = carry
        before = state.generated.lengths
        is_active = ~state.is_done & (before < params.limit)
        token_buffer, drafts, draft_cache = draft_tokens(draft_step, state, speculative.cache, is_active, params, spec)
        # A row that runs ahead of the others leaves them slots without a token. It may, as long as the remaining slots
        # are enough for the row with the most tokens to go.
        num_to_go = jnp.max(jnp.where(is_active, params.limit - before, 0))
        extra_slots = state.cache.capacity - state.cache.num_written - num_to_go - spec.num_draft
        logits, cache = verify(drafts.inputs.T, drafts.is_token.T, state.cache)
        state = state._replace(token_buffer=token_buffer, cache=None)
        state, is_accepted = accept_drafts(state, drafts, logits, is_active, extra_slots, params, spec)
        num_kept = state.generated.lengths - before
        if draft_cache is not None:
            draft_cache = draft_cache.accept_prefix(num_kept, spec.num_draft + 1)
        state = state._replace(cache=cache.accept_prefix(num_kept, spec.num_draft + 1))
        is_proposed = drafts.is_token & (drafts.proposed != NO_PROPOSAL)
        num_drafted, num_accepted = (jnp.sum(x[:-1], axis=0, dtype=jnp.int32) for x in (is_proposed, is_accepted))
        return state, SpeculativeState(
            draft_cache, speculative.num_drafted + num_drafted, speculative.num_accepted + num_accepted
        )

    return jax.lax.while_loop(has_active_rows, draft_and_verify, (state, speculative))
