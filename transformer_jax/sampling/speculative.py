"""Speculative decoding: tokens are drafted cheaply, and the model reads many of them at once and judges them.

Leviathan et al. 2023 and Chen et al. 2023, with a smaller model; drafts from the text itself: Saxena 2023. No model
here: `verify(tokens [B, T], is_token [B, T], cache) -> (logits at every place [B, T, V], cache)` is the model's step
(generate.py) with all logits, and `draft_step` is such a step of a smaller one. Caches are DecodeCaches.

Why a text has the model's own distribution, after all processors: token i of a row is a function of the text before it
and of the row's key for i alone, and given that text its distribution is the model's. What is read together, how many
are drafted at a time and what the other rows do changes only how often the model is asked. For this the token behind
the last drafted one is chosen as all others are: with a draft of its own, which the model has not read.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.errors import choose
from transformer_jax.nn.kv_cache import DecodeCache, accept_prefix, rewind
from transformer_jax.sampling import logits_processors as transforms
from transformer_jax.sampling.decode import (
    CHOICES,
    DecodeState,
    Generated,
    choose_tokens,
    keys_of_tokens,
    newest_tokens,
    prefill,
)
from transformer_jax.sampling.logits_processors import check
from transformer_jax.sampling.text_processors import follows_newest

NOTHING = -1  # instead of a drafted token
_STATIC = ("num_draft", "prompt_lookup", "choice", "eos_ids", "pad_id", "stop_sequences")
_DRAFT, _ACCEPT, _REPLACE = 1, 2, 3  # what the key of a token is used for


class SpeculativeState(NamedTuple):
    """What draft_source needs beside a DecodeState, and what came of it."""

    cache: DecodeCache | None  # of the smaller model, slot by slot as the model's own
    num_drafted: jax.Array  # int32 [B]: tokens proposed to the model; one that it did not come to is proposed again
    num_accepted: jax.Array  # int32 [B]: those that are in the text


class Speculated(NamedTuple):
    """What the rows go on with, and how many of their tokens were drafted."""

    found: Generated
    num_drafted: jax.Array  # int32 [B]
    num_accepted: jax.Array  # int32 [B]


class Drafts(NamedTuple):
    """What the model is to read, place by place, and what is proposed there: k + 1 places for k drafted tokens."""

    read: jax.Array  # int32 [k + 1, B]: the newest token of each row, then the drafted ones
    is_token: jax.Array  # bool [k + 1, B]
    proposed: jax.Array  # int32 [k + 1, B]: the token after each; NOTHING: no proposal
    logits: (
        jax.Array | None
    )  # float32 [k + 1, B, V], after all processors, that it was drawn from; None: it was not drawn


@functools.partial(jax.jit, static_argnames=("max_new_tokens", "num_top", *_STATIC))
def speculate(
    step: Callable,
    verify: Callable,
    cache: DecodeCache,
    tokens: jax.Array,
    is_token: jax.Array,
    keys: jax.Array,
    first_index: jax.Array | int = 0,
    processors: tuple = (),
    states: tuple | None = None,
    draft_step: Callable | None = None,
    draft_cache: DecodeCache | None = None,
    *,
    num_draft: int,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    prompt_lookup: int = 0,
    choice: str = "sample",
    stop_sequences: tuple[tuple[int, ...], ...] = (),
    num_top: int = 0,
) -> Speculated:
    """What `generate` gives, for fewer calls of the model: `prefill`, `prefill_speculative` and `decode_speculative` in one.

    Greedy, and with prompt_lookup, the tokens are those of `generate`, but for what another order of sums in the model
    turns round. Sampled with a smaller model they are others, of the same distribution.

    Args:
      step, verify: the model's, see the top of this file. The empty cache has T + max_new_tokens - 1 + num_draft slots
        or more. Rows that are luckier than others go ahead of them as far as there are more.
      draft_step, draft_cache: of a smaller model of the same vocabulary, with as many slots; or none, and
      prompt_lookup: what followed the last so many tokens where they stood in the text before is proposed.
      num_draft: tokens drafted for each call of the model.
      The others are those of `generate`.
    Raises:
      UserError: as `generate`; caches without slots (linear attention), or with too few; num_draft below 1; not one
        of both kinds of drafts.
    """
    check(max_new_tokens >= 1, "max_new_tokens", max_new_tokens, "must be at least 1")
    for name, one in (("cache", cache), ("draft_cache", draft_cache or cache)):
        least = tokens.shape[1] + max_new_tokens - 1 + num_draft
        rule = f"must be at least {least} slots, for the prompts, the new tokens but one, and num_draft"
        check(one.capacity >= least or not one.capacity, f"{name}.capacity", one.capacity, rule)
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
        **settings,
    )
    ahead = prefill_speculative(tokens, is_token, draft_step, draft_cache)
    state, ahead = decode_speculative(
        verify,
        state,
        ahead,
        keys,
        max_new_tokens,
        max_new_tokens,
        first_index,
        processors,
        draft_step,
        num_draft=num_draft,
        prompt_lookup=prompt_lookup,
        **settings,
    )
    return Speculated(state.found, ahead.num_drafted, ahead.num_accepted)


@jax.jit
def prefill_speculative(
    tokens: jax.Array,
    is_token: jax.Array,
    draft_step: Callable | None = None,
    draft_cache: DecodeCache | None = None,
    num_unused: jax.Array | int | None = None,
) -> SpeculativeState:
    """Let the smaller model read the prompts, if there is one. Arguments as for `prefill` and `speculate`."""
    if draft_step is not None:
        draft_cache = rewind(draft_step(tokens, is_token, draft_cache)[1], 0 if num_unused is None else num_unused)
    zeros = jnp.zeros(len(tokens), jnp.int32)
    return SpeculativeState(draft_cache, zeros, zeros)


@functools.partial(jax.jit, static_argnames=_STATIC)
def decode_speculative(
    verify: Callable,
    state: DecodeState,
    ahead: SpeculativeState,
    keys: jax.Array,
    until: jax.Array | int,
    most: jax.Array | int,
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
    """Draft and judge until every row has `until` tokens or more, but at most `most`, or has ended.

    Args:
      most: that will be asked for in all calls. The cache has room for them, and for num_draft slots beside.
      The others are those of `decode` and `speculate`.
    """
    check(num_draft >= 1, "num_draft", num_draft, "must be at least 1")
    check(
        (draft_step is None) == (prompt_lookup >= 1),
        "prompt_lookup",
        prompt_lookup,
        "must be 1 or more where there is no smaller model, and 0 where there is one",
    )
    settings = dict(eos_ids=eos_ids, pad_id=pad_id, stop_sequences=stop_sequences)
    shared = dict(keys=keys, first_index=first_index, processors=processors)
    choose_token = functools.partial(choose_tokens, **shared, **settings)
    draft = functools.partial(
        _draft, **shared, most=most, step=draft_step, prompt_lookup=prompt_lookup, num_draft=num_draft, choice=choice
    )

    def go_on(state):
        return jnp.any(~state[0].is_done & (state[0].found.lengths < until))

    def one_round(carry):
        state, ahead = carry
        before = state.found.lengths
        is_active = ~state.is_done & (before < most)
        text, drafts, draft_cache = draft(state, ahead.cache, is_active)
        # A row that goes ahead of the others leaves them slots that hold nothing. It may, as long as the slots that
        # remain are enough for the row that has most to go.
        num_to_go = jnp.max(jnp.where(is_active, most - before, 0))
        extra_slots = state.cache.capacity - state.cache.num_written - num_to_go - num_draft
        logits, cache = verify(drafts.read.T, drafts.is_token.T, state.cache)
        state, is_accepted = _judge(
            state._replace(text=text, cache=None), drafts, logits, is_active, most, extra_slots, choose_token, choice
        )
        num_kept = state.found.lengths - before
        if draft_step is not None:
            draft_cache = accept_prefix(draft_cache, num_draft + 1, num_kept)
        state = state._replace(cache=accept_prefix(cache, num_draft + 1, num_kept))
        is_proposed = drafts.is_token & (drafts.proposed != NOTHING)
        num_drafted, num_accepted = (jnp.sum(x[:-1], axis=0, dtype=jnp.int32) for x in (is_proposed, is_accepted))
        return state, SpeculativeState(draft_cache, ahead.num_drafted + num_drafted, ahead.num_accepted + num_accepted)

    return jax.lax.while_loop(go_on, one_round, (state, ahead))


def _draft(state, cache, is_active, *, keys, first_index, processors, most, step, prompt_lookup, num_draft, choice):
    """Texts with drafted tokens behind them, what the model is to read, and the smaller model's cache."""
    new, rows = state.found.lengths, jnp.arange(len(state.text))

    def one_token(carry, i):
        token, is_token, text, states, cache = carry
        is_token &= new + i < most  # a token that is not to be chosen any more may have no position in the model
        lengths = state.prompt_lengths + new + i
        if prompt_lookup:
            drafted, logits = _look_up(text, lengths, prompt_lookup), None
        else:
            logits, cache = step(token[:, None], is_token[:, None], cache)
            logits, states = transforms.apply(processors, logits.astype(jnp.float32), text, lengths, states)
            token_keys = keys_of_tokens(keys_of_tokens(keys, first_index + new + i), jnp.full_like(new, _DRAFT))
            drafted = choose(CHOICES, choice, "choice")(logits, token_keys).astype(jnp.int32)
        following = jnp.maximum(drafted, 0)
        carry = following, is_token & (drafted != NOTHING), text.at[rows, lengths].set(following), states, cache
        return carry, Drafts(token, is_token, drafted, logits if choice == "sample" else None)

    carry = newest_tokens(state)[:, 0], is_active, state.text, state.found.states, cache
    (_, _, text, _, cache), drafts = jax.lax.scan(one_token, carry, jnp.arange(num_draft + 1))
    return text, drafts, cache


def _look_up(text, lengths, n):
    """What followed when the last n tokens of the text stood in it before, the latest time [B]; or NOTHING."""
    followed = follows_newest(text, lengths, n)
    latest = text.shape[1] - 1 - jnp.argmax(followed[:, ::-1], axis=1)
    token = jnp.take_along_axis(text, latest[:, None], axis=1)[:, 0]
    return jnp.where(jnp.any(followed, axis=1), token, NOTHING)


def _judge(state, drafts, logits, goes_on, most, extra_slots, choose_token, choice):
    """Go through the places one by one: each row goes on while the token chosen is the one that was proposed.

    Returns the DecodeState after that, and where a proposed token was accepted, bool [k + 1, B].
    """

    def one_place(carry, place):
        state, goes_on, limit = carry
        i, logits, proposed, draft_logits = place
        choose_one = choose(CHOICES, choice, "choice")
        if draft_logits is not None:
            choose_one = functools.partial(_accept_or_replace, proposed, draft_logits)
        after = choose_token(state, logits, choose_one=choose_one)
        is_longer = goes_on & (after.found.lengths > state.found.lengths)
        state = jax.tree.map(functools.partial(_where_rows, goes_on), after, state)
        is_accepted = is_longer & (newest_tokens(state)[:, 0] == proposed)
        may_go_on = goes_on & ~state.is_done & (state.found.lengths < most)
        # The first row that stops says how far ahead of it the others may go.
        is_first = jnp.any(may_go_on & ~is_accepted)
        limit = jnp.where(is_first, jnp.minimum(limit, i + 1 + jnp.maximum(extra_slots, 0)), limit)
        return (state, may_go_on & is_accepted & (i + 1 < limit), limit), is_accepted

    num_places = len(drafts.read)
    places = jnp.arange(num_places), jnp.swapaxes(logits, 0, 1), drafts.proposed, drafts.logits
    (state, _, _), is_accepted = jax.lax.scan(one_place, (state, goes_on, jnp.int32(num_places)), places)
    return state, is_accepted


def _where_rows(is_row, new, old):
    return jnp.where(jnp.reshape(is_row, (-1,) + (1,) * (new.ndim - 1)), new, old)


def _accept_or_replace(proposed, draft_logits, logits, keys):
    """Tokens drawn from p, given such that were drawn from q: Leviathan et al. 2023, section 2.3.

    A proposed token is accepted with probability min(1, p / q), or else replaced by one from max(p - q, 0).
    """
    p, q = jax.nn.softmax(logits, axis=-1), jax.nn.softmax(draft_logits, axis=-1)
    p_of, q_of = (jnp.take_along_axis(x, proposed[:, None], axis=1)[:, 0] for x in (p, q))
    accept_keys, replace_keys = (keys_of_tokens(keys, jnp.full_like(proposed, use)) for use in (_ACCEPT, _REPLACE))
    is_accepted = jax.vmap(jax.random.uniform)(accept_keys) * q_of < p_of
    left = jnp.maximum(p - q, 0.0)
    left = jnp.where(jnp.sum(left, axis=-1, keepdims=True) > 0, left, p)  # nothing is left where p = q but for rounding
    replacement = jax.vmap(jax.random.categorical)(replace_keys, jnp.log(left))
    return jnp.where(is_accepted, proposed, replacement)
