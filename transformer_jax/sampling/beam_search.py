"""Beam search in one compiled loop: length penalties, stopping rules, diverse groups. It knows no model, only its step.

`step` is the function that spec.py describes. Of the cache only `expand` and `reorder` are used. B, T and V are
as in the rest of the package, and W is the number of beams of a row (`num_beams`). The model sees W beams of B rows as
B W rows. With groups of beams, each group of a row is a search of its own: R = B num_groups searches of
W / num_groups beams.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.errors import check, choose
from transformer_jax.nn.kv_cache import KVCache
from transformer_jax.sampling.decode import text_buffer, where_rows
from transformer_jax.sampling.logits_processors import RULED_OUT, apply_processors, init_states
from transformer_jax.sampling.spec import DecodeSpec, Prompts, Step
from transformer_jax.sampling.top_k import largest

LENGTH_PENALTIES = {  # (n new tokens, alpha) -> divisor of the sum of their log-probabilities
    "gnmt": lambda n, alpha: ((5 + n) / 6) ** alpha,  # Wu et al. 2016, equation 14
    "mean": lambda n, alpha: n**alpha,  # alpha = 1: the mean log-probability of a token
}


@dataclasses.dataclass(frozen=True)
class StoppingRule:
    """Stopping rule: the condition under which a search is done and accepts no more hypotheses.

    `is_done(worst, best, reachable, current)`: `worst` is the score of the last of its W hypotheses, -inf while there
    are fewer; `best` the log-probability of the most likely open beam; `reachable` the largest penalty among the
    lengths that this beam can still reach, `current` the penalty of its present length.
    """

    is_done: Callable
    wants_likely_ends: bool  # a beam ends only by a token among the W most likely continuations of all beams


STOPPING = {
    # Until no open beam can win. An open beam of n tokens and log-probability p <= 0 can still become a hypothesis of
    # n + 1 to max_new_tokens tokens and of a log-probability of at most p, so its score is at most p / the largest
    # penalty among those lengths. This also holds for the rounded numbers, and a tie does not replace a hypothesis:
    # stopping changes no result. (Logits processors that add to log-probabilities, such as LogitBias, break it.)
    "exhaustive": StoppingRule(lambda worst, best, reachable, current: worst >= best / reachable, False),
    # The two rules of the reference library. early_stopping=True: as soon as there are W hypotheses. False: as soon as
    # the most likely beam, if it ended now, would be no better than the last hypothesis. This misses better ones if
    # alpha > 0, because later tokens cost less than earlier ones. Under both rules an unlikely end is no hypothesis,
    # because otherwise W beams would have W hypotheses after two steps.
    "first": StoppingRule(lambda worst, best, reachable, current: worst > -jnp.inf, True),
    "heuristic": StoppingRule(lambda worst, best, reachable, current: worst >= best / current, True),
}
_IMPOSSIBLE = -jnp.inf  # unlike NaN it survives sums, divisions and comparisons


class Beams(NamedTuple):
    """Hypotheses of each row, best first. In the result of `beam_search`, W is `num_return`."""

    tokens: jax.Array  # int32 [B, W, max_new_tokens]; EOS included, pad_id after it
    scores: jax.Array  # float32 [B, W]: natural log-probability / penalty; -inf: no such hypothesis
    lengths: jax.Array  # int32 [B, W]: new tokens, EOS included


class _State(NamedTuple):
    """State of the loop over new tokens."""

    num_new: jax.Array  # int32: tokens in every open beam
    tokens: jax.Array  # int32 [R, W, max_new_tokens] of the open beams
    log_probs: jax.Array  # float32 [R, W] of the open beams, most likely first; -inf: no beam
    ended: Beams  # the best W hypotheses
    is_done: jax.Array  # bool [R]
    is_nan: jax.Array  # bool [R]: a NaN occurred before the search was done
    processor_states: tuple  # of R W rows
    cache: KVCache | None  # of R W rows; None: not made yet


class BeamParams(NamedTuple):
    """Numbers of a beam search, arguments of the compiled program."""

    penalties: jax.Array | np.ndarray  # float32 [max_new_tokens]: divisors of the scores of 1, 2, ... new tokens
    processors: tuple = ()  # logits processors, as for `beam_search`
    diversity: jax.Array | np.floating | float = (
        0.0  # subtracted from a token for each beam of an earlier group that has just chosen it
    )

    @classmethod
    def of(
        cls,
        max_new_tokens: int,
        processors: tuple = (),
        *,
        length_penalty: float = 1.0,
        length_normalization: str = "gnmt",
        diversity: float = 0.0,
    ) -> "BeamParams":
        """Check the numbers, and compute LENGTH_PENALTIES[length_normalization](n, length_penalty) for n tokens.

        Args:
          length_penalty: alpha. 0: none; above 0 favours long hypotheses, below 0 short ones.
        Raises:
          UserError: length_penalty outside -4..4, an unknown normalization, diversity below 0.
        """
        # Outside of these, the penalties of long hypotheses leave float32.
        rule = "must be from -4 to 4. Take 0 (none) to 1"
        check(-4 <= length_penalty <= 4, "length_penalty", length_penalty, rule)
        check(0 <= diversity <= 1e6, "diversity", diversity, "must be from 0 (none) to 1e6. Take 0.5")
        penalty_of = choose(LENGTH_PENALTIES, length_normalization, "length_normalization")
        penalties = penalty_of(np.arange(1.0, max_new_tokens + 1), length_penalty).astype(np.float32)
        return cls(penalties, processors, np.float32(diversity))


@jax.jit
def beam_search(step: Step, cache: KVCache, prompts: Prompts, params: BeamParams, spec: DecodeSpec) -> Beams:
    """Beam search: prefill the prompts, then search for the continuations of highest score. Wu et al. 2016, section 7.

    The score of n new tokens is the sum of their log-probabilities, divided by params.penalties[n - 1]. At every step
    each open beam may end, which makes it a hypothesis and uses up no open beam, and of all continuations without EOS
    the W most likely stay open. At `max_new_tokens` the open beams become hypotheses too. If W beams hold all possible
    prefixes, the search is exhaustive. Ties go to the lower index: the hypothesis that ended earlier, the better beam,
    the smaller token id.

    With groups of beams that differ, Vijayakumar et al. 2018, section 4, a group chooses at each step after the groups
    before it, and params.diversity is subtracted from a token once for each of their beams that has just chosen it.
    This decides only which beams stay, and leaves scores unchanged. Each group stops by itself.

    Args:
      cache: with B rows, and room for T + max_new_tokens - 1 slots.
      params: its logits processors see the log-probabilities of each step, which are not normalized again: put
        Renormalize where that is wanted. A forced token costs nothing, but counts in the length. States follow their
        beams.
      spec: with `beams`; its method, stop sequences, num_top and chunk are not used.
    Returns:
      Beams, best first. Tokens of logit -inf or finfo.min are impossible; where fewer than `num_return`
      hypotheses are possible the rest have only `pad_id`, length 0 and score -inf. A row with a NaN logit in its beams
      (which a cache that is too small causes) has only `pad_id`, length 0 and score NaN.
    Raises:
      UserError: an unknown stopping rule.
    """
    assert spec.beams is not None
    num_beams = spec.beams.num_beams
    num_groups = spec.beams.num_groups
    rule = choose(STOPPING, spec.beams.stopping, "stopping")
    max_new_tokens = spec.max_new_tokens
    tokens = jnp.asarray(prompts.tokens)
    is_token = jnp.asarray(prompts.is_token)
    B = len(tokens)
    R = B * num_groups
    W = num_beams // num_groups
    texts, lengths = (jnp.repeat(x, num_beams, axis=0) for x in text_buffer(prompts, spec))
    search = _Search(num_groups, rule, jnp.array(spec.eos_ids, jnp.int32), params, texts, lengths)

    def has_open_searches(state):
        return (state.num_new < max_new_tokens) & ~jnp.all(state.is_done)

    def search_step(state):
        newest = state.tokens[:, :, state.num_new - 1].reshape(R * W, 1)
        logits, cache = step(newest, jnp.ones((R * W, 1), bool), state.cache)
        state, parents = search.extend_beams(state, logits.reshape(R, W, -1))
        rows = (jnp.arange(R)[:, None] * W + parents).reshape(R * W)
        processor_states = jax.tree.map(lambda x: x[rows], state.processor_states)
        return state._replace(processor_states=processor_states, cache=cache.reorder(rows))

    logits, cache = step(tokens, is_token, cache)
    state = search.initial_state(R, W, spec.pad_id)
    state, _ = search.extend_beams(state, jnp.repeat(logits, num_beams, axis=0).reshape(R, W, -1))
    # All beams of a row share one parent, its prompt, and its encoded source. The loop is compiled even for one new
    # token, so there is always room for a step.
    num_before = spec.num_virtual + (0 if prompts.before is None else len(prompts.before))
    capacity = num_before + tokens.shape[1] + num_beams * max(1, max_new_tokens - 1)
    state = state._replace(cache=cache.expand(num_beams, capacity))
    state = jax.lax.while_loop(has_open_searches, search_step, state)

    best = jax.tree.map(lambda x: x.reshape(B, num_beams, *x.shape[2:]), state.ended)
    best = _best(_without_duplicates(best) if num_groups > 1 else best, spec.beams.num_return)
    is_nan = jnp.any(state.is_nan.reshape(B, num_groups), axis=1)[:, None]
    is_none = is_nan | (best.scores == _IMPOSSIBLE)
    return Beams(
        jnp.where(is_none[:, :, None], spec.pad_id, best.tokens),
        jnp.where(is_nan, jnp.nan, best.scores),
        jnp.where(is_none, 0, best.lengths),
    )


class _Search(NamedTuple):
    """Constants of a beam search, and one step of it: from logits to the next beams."""

    num_groups: int
    rule: StoppingRule
    eos_ids: jax.Array  # int32
    params: BeamParams
    prompts: jax.Array  # int32 [R W, S]: token buffer with the left-aligned prompts, and room for the new tokens
    prompt_lengths: jax.Array  # int32 [R W]

    def initial_state(self, R: int, W: int, pad_id: int) -> _State:
        """Return the state before the first new token, without a cache."""
        max_new_tokens = len(self.params.penalties)
        no_tokens = jnp.full((R, W, max_new_tokens), pad_id, jnp.int32)
        scores = jnp.full((R, W), _IMPOSSIBLE, jnp.float32)
        no_lengths = jnp.zeros((R, W), jnp.int32)
        one_beam = scores.at[:, 0].set(0.0)  # the prompt; W equal beams would stay equal
        no = jnp.zeros(R, bool)
        processor_states = init_states(self.params.processors, self.prompts, self.prompt_lengths, max_new_tokens)
        return _State(
            num_new=jnp.int32(0),
            tokens=no_tokens,
            log_probs=one_beam,
            ended=Beams(no_tokens, scores, no_lengths),
            is_done=no,
            is_nan=no,
            processor_states=processor_states,
            cache=None,
        )

    def process(self, state: _State, log_probs: jax.Array) -> tuple[jax.Array, tuple]:
        """Apply the logits processors to log-probabilities [R, W, V]; also return their new states."""
        if not self.params.processors:
            return log_probs, ()
        num_rows = len(self.prompts)
        max_new_tokens = len(self.params.penalties)
        positions = self.prompt_lengths[:, None] + jnp.arange(max_new_tokens)
        rows = jnp.arange(num_rows)[:, None]
        token_buffer = self.prompts.at[rows, positions].set(state.tokens.reshape(num_rows, max_new_tokens))
        flat = log_probs.reshape(num_rows, -1)
        lengths = self.prompt_lengths + state.num_new
        flat, states = apply_processors(self.params.processors, flat, token_buffer, lengths, state.processor_states)
        return flat.reshape(log_probs.shape), states

    def extend_beams(self, state: _State, logits: jax.Array) -> tuple[_State, jax.Array]:
        """Add a token to each beam, from logits [R, W, V]: the state without its cache, and the parents [R, W]."""
        R, W, V = logits.shape
        n = state.num_new
        penalties = jnp.asarray(self.params.penalties)
        max_new_tokens = len(self.params.penalties)
        model_log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        log_probs, processor_states = self.process(state, model_log_probs)
        is_open = (state.log_probs > _IMPOSSIBLE) & ~state.is_done[:, None]
        is_nan = (jnp.isnan(model_log_probs) | jnp.isnan(log_probs)) & is_open[:, :, None]
        is_nan = jnp.any(is_nan, axis=(1, 2))
        is_possible = log_probs > RULED_OUT  # False for NaN, so that the lines below never meet one
        log_probs = state.log_probs[:, :, None] + jnp.where(is_possible, log_probs, _IMPOSSIBLE)

        ending = self._keep_likely(log_probs) if self.rule.wants_likely_ends else log_probs
        ending = ending.at[:, :, self.eos_ids].get(mode="fill", fill_value=_IMPOSSIBLE)
        ending = ending.reshape(R, W * len(self.eos_ids))
        tokens = jnp.repeat(state.tokens, len(self.eos_ids), axis=1).at[:, :, n].set(jnp.tile(self.eos_ids, W))
        ended_now = Beams(tokens, ending / penalties[n], jnp.full(ending.shape, n + 1))

        continuing = log_probs.at[:, :, self.eos_ids].set(_IMPOSSIBLE).reshape(R, W * V)
        kept = largest(continuing, W)[1] if self.num_groups == 1 else self._choose_diverse(continuing, W)
        log_probs = jnp.take_along_axis(continuing, kept, axis=1)
        parents = kept // V
        token = kept % V
        tokens = jnp.take_along_axis(state.tokens, parents[:, :, None], axis=1).at[:, :, n].set(token)
        scores = jnp.where(n + 1 == max_new_tokens, log_probs / penalties[n], _IMPOSSIBLE)
        cut_off = Beams(tokens, scores, jnp.full((R, W), n + 1))  # hypotheses only at max_new_tokens

        candidates = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), state.ended, ended_now, cut_off)
        ended = jax.tree.map(functools.partial(where_rows, state.is_done), state.ended, _best(candidates, W))
        # The largest penalty among the lengths beyond n + 1; 1 after the last.
        reachable = jnp.append(jax.lax.cummax(penalties, reverse=True), 1)[n + 1]
        best = jnp.max(log_probs, axis=1)
        is_done = state.is_done | self.rule.is_done(ended.scores[:, -1], best, reachable, penalties[n])
        is_done |= best == _IMPOSSIBLE
        return _State(n + 1, tokens, log_probs, ended, is_done, state.is_nan | is_nan, processor_states, None), parents

    def _keep_likely(self, log_probs):
        """Keep the W most likely continuations of all beams [R, W, V]; the others become impossible."""
        R, W, V = log_probs.shape
        _, likely = largest(log_probs.reshape(R, W * V), W)
        is_likely = jnp.zeros((R, W * V), bool).at[jnp.arange(R)[:, None], likely].set(True)
        return jnp.where(is_likely.reshape(R, W, V), log_probs, _IMPOSSIBLE)

    def _choose_diverse(self, continuing, W):
        """Choose the continuations that stay open, group after group: [R, W], from log-probabilities [R, W V]."""
        groups = continuing.reshape(-1, self.num_groups, continuing.shape[1])
        V = continuing.shape[1] // W
        rows = jnp.arange(len(groups))[:, None]
        counts = jnp.zeros((len(groups), V))  # beams that have just chosen each token
        kept = []
        for g in range(self.num_groups):
            _, best = largest(groups[:, g] - self.params.diversity * jnp.tile(counts, (1, W)), W)
            is_beam = jnp.take_along_axis(groups[:, g], best, axis=1) > _IMPOSSIBLE
            counts = counts.at[rows, best % V].add(is_beam)
            kept.append(best)
        return jnp.stack(kept, axis=1).reshape(len(continuing), W)


def _best(hypotheses, num):
    """Keep the best `num` hypotheses of each row; ties go to the first."""
    scores, kept = jax.lax.top_k(hypotheses.scores, num)
    tokens = jnp.take_along_axis(hypotheses.tokens, kept[:, :, None], axis=1)
    return Beams(tokens, scores, jnp.take_along_axis(hypotheses.lengths, kept, axis=1))


def _without_duplicates(hypotheses):
    """Make a hypothesis impossible if another group has found it before."""
    tokens, lengths = hypotheses.tokens, hypotheses.lengths
    is_same = jnp.all(tokens[:, :, None] == tokens[:, None], axis=-1) & (lengths[:, :, None] == lengths[:, None])
    is_copy = jnp.any(is_same & jnp.tril(jnp.ones(is_same.shape[1:], bool), -1), axis=-1)
    return hypotheses._replace(scores=jnp.where(is_copy, _IMPOSSIBLE, hypotheses.scores))
