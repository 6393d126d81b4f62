"""Beam search: the likeliest continuations, inside one compiled loop. No model here: only its step function.

`step` is the one that `sampling.generate` describes; beside it only `cache.reorder` is known. Letters: B, T and
V as everywhere, and W for the beams of a row (`num_beams`). The model sees W beams of B rows as B W rows.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.cache import reorder
from transformer_jax.config import UserError, choose

LENGTH_PENALTIES = {  # (n new tokens, alpha) -> what the sum of their log-probabilities is divided by
    "wu": lambda n, alpha: ((5 + n) / 6) ** alpha,  # Wu et al. 2016, equation 14
    "average": lambda n, alpha: n**alpha,  # alpha = 1: the mean log-probability of a token
}
_IMPOSSIBLE = -jnp.inf  # never in the way of a sum, a division or a comparison, unlike NaN


class Beams(NamedTuple):
    """Hypotheses of each row, best first. In the answer W is `num_return`."""

    tokens: jax.Array  # int32 [B, W, max_new_tokens]; EOS included, pad_id after it
    scores: jax.Array  # float32 [B, W]: natural log-probability / penalty; -inf: there is no such hypothesis
    lengths: jax.Array  # int32 [B, W]: new tokens, EOS included


class _State(NamedTuple):
    num_new: jax.Array  # int32: tokens in every open beam
    tokens: jax.Array  # int32 [B, W, max_new_tokens] of the open beams
    log_probs: jax.Array  # float32 [B, W] of the open beams, likeliest first; -inf: no beam
    ended: Beams  # the best W hypotheses that ended with EOS
    is_nan: jax.Array  # bool [B]: NaN met before the row was done
    cache: Any  # of B W rows


@functools.partial(
    jax.jit,
    static_argnames=(
        "num_beams", "max_new_tokens", "eos_id", "pad_id", "length_penalty", "num_return", "penalty",
    ),
)  # fmt: skip
def beam_search(
    step: Callable,
    cache: Any,
    tokens: jax.Array,
    is_token: jax.Array,
    *,
    num_beams: int,
    max_new_tokens: int,
    eos_id: int,
    pad_id: int,
    length_penalty: float = 1.0,
    num_return: int = 1,
    penalty: str = "wu",
) -> Beams:
    """Read the prompts, then search for the continuations of the highest score. Wu et al. 2016, section 7.

    The score of n new tokens is the sum of their log-probabilities / LENGTH_PENALTIES[penalty](n, length_penalty).
    At every step each open beam may end, which makes it a hypothesis and takes no open beam's place, and of all
    continuations without EOS the W likeliest stay open. At `max_new_tokens` the open beams are hypotheses too.
    If all the beginnings there are fit into W beams, the search is exhaustive. Of equals the lower index wins:
    the hypothesis that ended earlier, the better beam, the smaller token id.

    Args:
      step: see sampling.generate. The cache has B rows, and room for T + max_new_tokens - 1 slots.
      tokens, is_token: prompts [B, T], padded on either side, at least one token in each row.
      eos_id: ends a hypothesis; -1: nothing does.
      length_penalty: alpha. 0: none; above 0 long hypotheses are favoured, below 0 short ones.
      num_return: hypotheses to give back for each row.
    Returns:
      Beams, best first. Tokens of logit -inf or finfo.min are impossible; where fewer than `num_return`
      hypotheses are possible the rest have only `pad_id`, length 0 and score -inf. A row in whose beams a NaN
      logit was met (a cache that was too small gives them) has only `pad_id`, length 0 and score NaN.
    Raises:
      UserError: num_beams or max_new_tokens below 1, num_return outside 1..num_beams, length_penalty outside
        -4..4, an unknown penalty.
    """
    _check(num_beams, max_new_tokens, length_penalty, num_return)
    B, W = len(tokens), num_beams
    penalty_of = choose(LENGTH_PENALTIES, penalty, "penalty")
    penalties = penalty_of(np.arange(1.0, max_new_tokens + 1), length_penalty).astype(np.float32)  # of 1, 2, ... tokens
    largest_ahead = jnp.array(np.maximum.accumulate(penalties[::-1])[::-1])  # [n]: over lengths n + 1, n + 2, ...
    penalties = jnp.array(penalties)

    def is_done(state):
        # An open beam of n tokens and log-probability p <= 0 can still become a hypothesis of n + 1 to
        # max_new_tokens tokens and of a log-probability of at most p, so its score is at most p / the largest
        # penalty among those lengths: that of max_new_tokens if alpha > 0, that of n + 1 if alpha <= 0. This
        # holds for the rounded numbers as well, and equals do not displace each other: stopping changes nothing.
        # With fewer than W hypotheses the worst score is -inf: such a row goes on while any beam is open.
        return state.ended.scores[:, -1] >= state.log_probs[:, 0] / largest_ahead[state.num_new]

    def go_on(state):
        return (state.num_new < max_new_tokens) & ~jnp.all(is_done(state))

    def choose_tokens(state, logits):
        """One more token for each beam, from logits [B, W, V]: the state but for the cache, and parents [B, W]."""
        n, V = state.num_new, logits.shape[-1]
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        is_open = state.log_probs > _IMPOSSIBLE
        is_nan = jnp.any(jnp.isnan(log_probs) & is_open[:, :, None], axis=(1, 2)) & ~is_done(state)
        is_possible = log_probs > jnp.finfo(jnp.float32).min  # and not NaN: what follows never meets one
        log_probs = state.log_probs[:, :, None] + jnp.where(is_possible, log_probs, _IMPOSSIBLE)

        is_eos = jnp.arange(V) == eos_id
        ending = Beams(
            state.tokens.at[:, :, n].set(eos_id),
            jnp.max(jnp.where(is_eos, log_probs, _IMPOSSIBLE), axis=-1) / penalties[n],
            jnp.full((B, W), n + 1),
        )
        continuing = jnp.where(is_eos, _IMPOSSIBLE, log_probs).reshape(B, W * V)
        log_probs, kept = jax.lax.top_k(continuing, W)
        parents, token = kept // V, kept % V
        tokens = jnp.take_along_axis(state.tokens, parents[:, :, None], axis=1).at[:, :, n].set(token)
        return _State(n + 1, tokens, log_probs, _best(state.ended, ending), state.is_nan | is_nan, None), parents

    def one_token(state):
        newest = state.tokens[:, :, state.num_new - 1].reshape(B * W, 1)
        logits, cache = step(newest, jnp.ones((B * W, 1), bool), state.cache)
        state, parents = choose_tokens(state, logits.reshape(B, W, -1))
        rows = jnp.arange(B)[:, None] * W + parents
        return state._replace(cache=reorder(cache, rows.reshape(B * W)))

    logits, cache = step(tokens, is_token, cache)
    nothing = jnp.full((B, W, max_new_tokens), pad_id, jnp.int32)
    scores, zeros = jnp.full((B, W), _IMPOSSIBLE, jnp.float32), jnp.zeros((B, W), jnp.int32)
    one_beam = scores.at[:, 0].set(0.0)  # the prompt; W equal beams would stay equal
    state = _State(jnp.int32(0), nothing, one_beam, Beams(nothing, scores, zeros), jnp.zeros(B, bool), None)
    state, _ = choose_tokens(state, jnp.broadcast_to(logits[:, None], (B, W, logits.shape[-1])))
    state = state._replace(cache=reorder(cache, jnp.repeat(jnp.arange(B), W)))
    state = jax.lax.while_loop(go_on, one_token, state)

    # Where all rows were done before the limit, these beams are shorter, but too bad to get in: see is_done.
    unended = Beams(state.tokens, state.log_probs / penalties[-1], jnp.full((B, W), max_new_tokens))
    best = _best(state.ended, unended)
    is_nan = state.is_nan[:, None]
    return Beams(
        jnp.where(is_nan[:, :, None], pad_id, best.tokens)[:, :num_return],
        jnp.where(is_nan, jnp.nan, best.scores)[:, :num_return],
        jnp.where(is_nan, 0, best.lengths)[:, :num_return],
    )


def _best(hypotheses, others):
    """The best W of two times W; those of `others` that are impossible never displace the first."""
    both = jax.tree.map(lambda first, second: jnp.concatenate([first, second], axis=1), hypotheses, others)
    scores, kept = jax.lax.top_k(both.scores, hypotheses.scores.shape[1])
    tokens = jnp.take_along_axis(both.tokens, kept[:, :, None], axis=1)
    return Beams(tokens, scores, jnp.take_along_axis(both.lengths, kept, axis=1))


def _check(num_beams, max_new_tokens, length_penalty, num_return):
    if num_beams < 1:
        raise UserError(f"num_beams={num_beams}: must be at least 1. Take 4.")
    if not 1 <= num_return <= num_beams:
        rule = f"must be from 1 to num_beams={num_beams}"
        raise UserError(f"num_return={num_return}: {rule}. Return fewer, or search with more beams.")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens}: must be at least 1.")
    if not -4 <= length_penalty <= 4:  # beyond, the penalties of long hypotheses leave float32
        raise UserError(f"length_penalty={length_penalty}: must be from -4 to 4. Take 0 (none) to 1.")
