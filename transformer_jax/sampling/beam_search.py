"""Beam search: the likeliest continuations, inside one compiled loop. No model here: only its step function.

`step` is the one that `sampling.generate` describes; beside it only `cache.expand_beams` and `reorder` are known. B, T
and V are as everywhere, and W is the number of a row's beams (`num_beams`). The model sees W beams of B rows as B W
rows. Where beams are in groups, each group of a row is a search of its own: R = B num_groups searches of
W / num_groups beams.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.errors import choose
from transformer_jax.nn.kv_cache import expand_beams, reorder
from transformer_jax.sampling import logits_processors as transforms
from transformer_jax.sampling.decode import left_aligned
from transformer_jax.sampling.logits_processors import check, largest

LENGTH_PENALTIES = {  # (n new tokens, alpha) -> what the sum of their log-probabilities is divided by
    "gnmt": lambda n, alpha: ((5 + n) / 6) ** alpha,  # Wu et al. 2016, equation 14
    "mean": lambda n, alpha: n**alpha,  # alpha = 1: the mean log-probability of a token
}


@dataclasses.dataclass(frozen=True)
class Stopping:
    """When a search is done: no hypothesis comes after that.

    `is_done(worst, best, reachable, now)`: `worst` is the score of the last of its hypotheses, -inf while there are
    fewer than beams; `best` the log-probability of the likeliest open beam; `reachable` the largest penalty of the
    lengths that it can still have, `now` that of its length.
    """

    is_done: Callable
    wants_likely_ends: bool  # a beam ends only by a token that is among the W likeliest continuations of all beams


STOPPING = {
    # When no open beam can win. An open beam of n tokens and log-probability p <= 0 can still become a hypothesis of
    # n + 1 to max_new_tokens tokens and of a log-probability of at most p, so its score is at most p / the largest
    # penalty among those lengths. This holds for the rounded numbers as well, and equals do not displace each other:
    # stopping changes nothing. (Methods that add to log-probabilities, LogitBias say, break it.)
    "exhaustive": Stopping(lambda worst, best, reachable, now: worst >= best / reachable, False),
    # The two kinds of the reference library: early_stopping=True, as soon as there are W hypotheses, and False, as
    # soon as the likeliest beam, if it ended now, would be no better than the last of them. The latter misses better
    # ones if alpha > 0: later tokens cost less than those before. In both an unlikely end is no hypothesis: else W
    # beams had W hypotheses after two steps.
    "first": Stopping(lambda worst, best, reachable, now: worst > -jnp.inf, True),
    "heuristic": Stopping(lambda worst, best, reachable, now: worst >= best / now, True),
}
_IMPOSSIBLE = -jnp.inf  # never in the way of a sum, a division or a comparison, unlike NaN


class Beams(NamedTuple):
    """Hypotheses of each row, best first. In the answer W is `num_return`."""

    tokens: jax.Array  # int32 [B, W, max_new_tokens]; EOS included, pad_id after it
    scores: jax.Array  # float32 [B, W]: natural log-probability / penalty; -inf: there is no such hypothesis
    lengths: jax.Array  # int32 [B, W]: new tokens, EOS included


class _State(NamedTuple):
    num_new: jax.Array  # int32: tokens in every open beam
    tokens: jax.Array  # int32 [R, W, max_new_tokens] of the open beams
    log_probs: jax.Array  # float32 [R, W] of the open beams, likeliest first; -inf: no beam
    ended: Beams  # the best W hypotheses
    is_done: jax.Array  # bool [R]
    is_nan: jax.Array  # bool [R]: NaN met before the search was done
    states: tuple  # of the processors, of R W rows
    cache: Any  # of R W rows


@functools.partial(
    jax.jit,
    static_argnames=(
        "num_beams",
        "max_new_tokens",
        "eos_ids",
        "pad_id",
        "length_penalty",
        "num_return",
        "length_normalization",
        "stopping",
        "num_groups",
        "diversity",
    ),
)
def beam_search(
    step: Callable,
    cache: Any,
    tokens: jax.Array,
    is_token: jax.Array,
    processors: tuple = (),
    *,
    num_beams: int,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    length_penalty: float = 1.0,
    num_return: int = 1,
    length_normalization: str = "gnmt",
    stopping: str = "exhaustive",
    num_groups: int = 1,
    diversity: float = 0.0,
) -> Beams:
    """Read the prompts, then search for the continuations of the highest score. Wu et al. 2016, section 7.

    The score of n new tokens is the sum of their log-probabilities / LENGTH_PENALTIES[length_normalization](n, length_penalty).
    At every step each open beam may end, which makes it a hypothesis and takes no open beam's place, and of all
    continuations without EOS the W likeliest stay open. At `max_new_tokens` the open beams are hypotheses too.
    If all the beginnings there are fit into W beams, the search is exhaustive. Of equals the lower index wins:
    the hypothesis that ended earlier, the better beam, the smaller token id.

    Args:
      step: see sampling.generate. The cache has B rows, and room for T + max_new_tokens - 1 slots.
      tokens, is_token: prompts [B, T], padded on either side, at least one token in each row.
      processors: change the log-probabilities of each step, which are not normalized again: put Renormalize where
        that is wanted. A forced token costs nothing, but counts in the length. States go with their beams.
      eos_ids: each ends a hypothesis; none: nothing does.
      length_penalty: alpha. 0: none; above 0 long hypotheses are favoured, below 0 short ones.
      num_return: hypotheses to give back for each row.
      stopping: a name in STOPPING.
      num_groups, diversity: groups of beams that differ, Vijayakumar et al. 2018, section 4: at each step a group
        chooses after those before it, and `diversity` is taken from a token as often as their beams have just chosen
        it. This only says which beams stay: scores are as ever. Each group stops for itself.
    Returns:
      Beams, best first. Tokens of logit -inf or finfo.min are impossible; where fewer than `num_return`
      hypotheses are possible the rest have only `pad_id`, length 0 and score -inf. A row in whose beams a NaN
      logit was met (a cache that was too small gives them) has only `pad_id`, length 0 and score NaN.
    Raises:
      UserError: num_beams or max_new_tokens below 1, num_return outside 1..num_beams, length_penalty outside
        -4..4, an unknown penalty or stopping, num_groups that do not divide num_beams, diversity below 0.
    """
    _check(num_beams, max_new_tokens, length_penalty, num_return, num_groups, diversity, eos_ids)
    penalty_of, rule = (
        choose(LENGTH_PENALTIES, length_normalization, "length_normalization"),
        choose(STOPPING, stopping, "stopping"),
    )
    B, R, W = len(tokens), len(tokens) * num_groups, num_beams // num_groups
    penalties = penalty_of(np.arange(1.0, max_new_tokens + 1), length_penalty).astype(np.float32)  # of 1, 2, ... tokens
    text, lengths = (jnp.repeat(x, num_beams, axis=0) for x in left_aligned(tokens, is_token, max_new_tokens))
    search = _Search(num_groups, diversity, rule, jnp.array(eos_ids, jnp.int32), penalties, processors, text, lengths)

    def go_on(state):
        return (state.num_new < max_new_tokens) & ~jnp.all(state.is_done)

    def one_token(state):
        newest = state.tokens[:, :, state.num_new - 1].reshape(R * W, 1)
        logits, cache = step(newest, jnp.ones((R * W, 1), bool), state.cache)
        state, parents = search.choose_tokens(state, logits.reshape(R, W, -1))
        rows = (jnp.arange(R)[:, None] * W + parents).reshape(R * W)
        states = jax.tree.map(lambda x: x[rows], state.states)
        return state._replace(states=states, cache=reorder(cache, rows, with_source=False))

    logits, cache = step(tokens, is_token, cache)
    nothing = jnp.full((R, W, max_new_tokens), pad_id, jnp.int32)
    scores, zeros = jnp.full((R, W), _IMPOSSIBLE, jnp.float32), jnp.zeros((R, W), jnp.int32)
    one_beam, no = scores.at[:, 0].set(0.0), jnp.zeros(R, bool)  # the prompt; W equal beams would stay equal
    states = transforms.start(processors, text, lengths, max_new_tokens)
    state = _State(jnp.int32(0), nothing, one_beam, Beams(nothing, scores, zeros), no, no, states, None)
    state, _ = search.choose_tokens(state, jnp.repeat(logits, num_beams, axis=0).reshape(R, W, -1))
    # All beams of a row have one parent, its prompt. The source they share.
    capacity = tokens.shape[1] + num_beams * max(1, max_new_tokens - 1)  # the loop is compiled, if only for no step
    state = state._replace(cache=expand_beams(cache, B, num_beams, capacity))
    state = jax.lax.while_loop(go_on, one_token, state)

    best = jax.tree.map(lambda x: x.reshape(B, num_beams, *x.shape[2:]), state.ended)
    best = _best(_nothing_twice(best) if num_groups > 1 else best, num_return)
    is_nan = jnp.any(state.is_nan.reshape(B, num_groups), axis=1)[:, None]
    is_none = is_nan | (best.scores == _IMPOSSIBLE)
    return Beams(
        jnp.where(is_none[:, :, None], pad_id, best.tokens),
        jnp.where(is_nan, jnp.nan, best.scores),
        jnp.where(is_none, 0, best.lengths),
    )


class _Search(NamedTuple):
    """What does not change while it runs, and how a token is chosen."""

    num_groups: int
    diversity: float
    rule: Stopping
    ends: jax.Array  # int32: the ids that end a hypothesis
    penalties: np.ndarray  # of 1, 2, ... tokens
    processors: tuple
    text: jax.Array  # int32 [R W, S]: the prompts, left-aligned, with room for the new tokens
    prompt_lengths: jax.Array  # int32 [R W]

    def changed(self, state: _State, log_probs: jax.Array) -> tuple[jax.Array, tuple]:
        """What the processors make of log-probabilities [R, W, V], and their states."""
        if not self.processors:
            return log_probs, ()
        rows, num = len(self.text), len(self.penalties)
        place = self.prompt_lengths[:, None] + jnp.arange(num)
        text = self.text.at[jnp.arange(rows)[:, None], place].set(state.tokens.reshape(rows, num))
        flat = log_probs.reshape(rows, -1)
        flat, states = transforms.apply(self.processors, flat, text, self.prompt_lengths + state.num_new, state.states)
        return flat.reshape(log_probs.shape), states

    def choose_tokens(self, state: _State, logits: jax.Array) -> tuple[_State, jax.Array]:
        """One more token for each beam, from logits [R, W, V]: the state but for the cache, and parents [R, W]."""
        (R, W, V), n = logits.shape, state.num_new
        penalties, num = jnp.array(self.penalties), len(self.penalties)
        plain = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        log_probs, states = self.changed(state, plain)
        is_open = (state.log_probs > _IMPOSSIBLE) & ~state.is_done[:, None]
        is_nan = jnp.any((jnp.isnan(plain) | jnp.isnan(log_probs)) & is_open[:, :, None], axis=(1, 2))
        is_possible = log_probs > transforms.RULED_OUT  # and not NaN: what follows never meets one
        log_probs = state.log_probs[:, :, None] + jnp.where(is_possible, log_probs, _IMPOSSIBLE)

        ending = self._likely(log_probs) if self.rule.wants_likely_ends else log_probs
        ending = ending.at[:, :, self.ends].get(mode="fill", fill_value=_IMPOSSIBLE).reshape(R, W * len(self.ends))
        texts = jnp.repeat(state.tokens, len(self.ends), axis=1).at[:, :, n].set(jnp.tile(self.ends, W))
        ending = Beams(texts, ending / penalties[n], jnp.full(ending.shape, n + 1))

        continuing = log_probs.at[:, :, self.ends].set(_IMPOSSIBLE).reshape(R, W * V)
        kept = largest(continuing, W)[1] if self.num_groups == 1 else self._diverse(continuing, W)
        log_probs, parents, token = jnp.take_along_axis(continuing, kept, axis=1), kept // V, kept % V
        tokens = jnp.take_along_axis(state.tokens, parents[:, :, None], axis=1).at[:, :, n].set(token)
        scores = jnp.where(n + 1 == num, log_probs / penalties[n], _IMPOSSIBLE)
        unended = Beams(tokens, scores, jnp.full((R, W), n + 1))

        both = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), state.ended, ending, unended)
        ended = jax.tree.map(functools.partial(_where, state.is_done), state.ended, _best(both, W))
        reachable = jnp.array(np.append(np.maximum.accumulate(self.penalties[::-1])[::-1], 1))[n + 1]
        best = jnp.max(log_probs, axis=1)
        is_done = state.is_done | self.rule.is_done(ended.scores[:, -1], best, reachable, penalties[n])
        is_done |= best == _IMPOSSIBLE
        return _State(n + 1, tokens, log_probs, ended, is_done, state.is_nan | is_nan, states, None), parents

    def _likely(self, log_probs):
        """Only those among the W likeliest of all beams [R, W, V] are left."""
        R, W, V = log_probs.shape
        _, likely = largest(log_probs.reshape(R, W * V), W)
        is_likely = jnp.zeros((R, W * V), bool).at[jnp.arange(R)[:, None], likely].set(True)
        return jnp.where(is_likely.reshape(R, W, V), log_probs, _IMPOSSIBLE)

    def _diverse(self, continuing, W):
        """The continuations that stay [R, W], one group after the other, of log-probabilities [R, W V]."""
        groups, V = continuing.reshape(-1, self.num_groups, continuing.shape[1]), continuing.shape[1] // W
        rows, number, kept = jnp.arange(len(groups))[:, None], jnp.zeros((len(groups), V)), []
        for g in range(self.num_groups):
            _, best = largest(groups[:, g] - self.diversity * jnp.tile(number, (1, W)), W)
            is_beam = jnp.take_along_axis(groups[:, g], best, axis=1) > _IMPOSSIBLE
            number = number.at[rows, best % V].add(is_beam)
            kept.append(best)
        return jnp.stack(kept, axis=1).reshape(len(continuing), W)


def _where(condition, x, y):
    """`jnp.where` for a condition of rows."""
    return jnp.where(condition.reshape(-1, *(1,) * (x.ndim - 1)), x, y)


def _best(hypotheses, num):
    """The best of each row; of equals the first."""
    scores, kept = jax.lax.top_k(hypotheses.scores, num)
    tokens = jnp.take_along_axis(hypotheses.tokens, kept[:, :, None], axis=1)
    return Beams(tokens, scores, jnp.take_along_axis(hypotheses.lengths, kept, axis=1))


def _nothing_twice(hypotheses):
    """What several groups found counts once."""
    tokens, lengths = hypotheses.tokens, hypotheses.lengths
    is_same = jnp.all(tokens[:, :, None] == tokens[:, None], axis=-1) & (lengths[:, :, None] == lengths[:, None])
    is_copy = jnp.any(is_same & jnp.tril(jnp.ones(is_same.shape[1:], bool), -1), axis=-1)
    return hypotheses._replace(scores=jnp.where(is_copy, _IMPOSSIBLE, hypotheses.scores))


def _check(num_beams, max_new_tokens, length_penalty, num_return, num_groups, diversity, eos_ids):
    check(num_beams >= 1, "num_beams", num_beams, "must be at least 1. Take 4")
    rule = f"must be from 1 to num_beams={num_beams}"
    check(1 <= num_return <= num_beams, "num_return", num_return, f"{rule}. Return fewer, or search with more beams")
    check(max_new_tokens >= 1, "max_new_tokens", max_new_tokens, "must be at least 1")
    # Beyond, the penalties of long hypotheses leave float32.
    check(-4 <= length_penalty <= 4, "length_penalty", length_penalty, "must be from -4 to 4. Take 0 (none) to 1")
    is_fine = num_groups >= 1 and num_beams % num_groups == 0
    check(is_fine, "num_groups", num_groups, f"must divide num_beams={num_beams}. Take 1, or as many as beams")
    check(0 <= diversity <= 1e6, "diversity", diversity, "must be from 0 (none) to 1e6. Take 0.5")
    check(all(token >= 0 for token in eos_ids), "eos_ids", eos_ids, "must be token ids, 0 or more")
