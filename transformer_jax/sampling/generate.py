"""Decoding, one token at a time, inside one compiled loop. No model here: only its step function.

`step(tokens [B, T], is_token [B, T], cache) -> (logits of each row's last token [B, V], cache)` is all
that is known of it. Pass a `jax.tree_util.Partial` over the parameters, so that they are arguments of the
compiled program and not constants in it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.config import UserError, choose
from transformer_jax.sampling import logits as transforms


def _greedy(logits, keys, sampler):
    return jnp.argmax(logits, axis=-1)


def _sample(logits, keys, sampler):
    logits = transforms.temperature(logits, sampler.temperature)
    if sampler.top_k:
        logits = transforms.top_k(logits, sampler.top_k)
    if sampler.top_p < 1.0:
        logits = transforms.top_p(logits, sampler.top_p)
    return jax.vmap(jax.random.categorical)(keys, logits)


METHODS = {"sample": _sample, "greedy": _greedy}


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How the next token is chosen: temperature first, then top-k, then top-p.

    Raises:
      UserError: an unknown method, temperature outside [1e-6, 1e6], top_k below 0, top_p outside (0, 1].
    """

    method: str = "sample"
    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0

    def __post_init__(self):
        choose(METHODS, self.method, "method")
        if not 1e-6 <= self.temperature <= 1e6:  # beyond, logits / temperature overflows
            rule = "must be above 0, from 1e-6 to 1e6"
            raise UserError(f"temperature={self.temperature}: {rule}. For 0, use method=greedy.")
        if self.top_k < 0:
            raise UserError(f"top_k={self.top_k}: must be 0 (all tokens) or more.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: must be above 0 and at most 1 (all tokens).")

    def __call__(self, logits: jax.Array, keys: jax.Array) -> jax.Array:
        """Choose one token of each row: logits [B, V], keys [B] -> int32 [B]."""
        return METHODS[self.method](logits, keys, self).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a model itself says of the tokens that it writes: generation_config.json, for pre-trained ones."""

    eos_ids: tuple[int, ...] = ()  # each ends a row
    pad_id: int = 0
    start_id: int = -1  # Seq2Seq: the token before the first one of a target; -1: none
    first_id: int = -1  # the first new token is this one; -1: any
    last_id: int = -1  # and the last one that there is room for
    never: tuple[int, ...] = ()  # no new token is one of these
    never_first: tuple[int, ...] = ()  # and the first one none of these

    def __call__(self, logits: jax.Array, index: jax.Array, is_last: jax.Array) -> jax.Array:
        """Logits [B, V] of new token number `index`, with what may not come ruled out."""
        if self.never:
            logits = transforms.rule_out(logits, self.never)
        if self.never_first:
            logits = jnp.where(index == 0, transforms.rule_out(logits, self.never_first), logits)
        for token, is_now in ((self.first_id, index == 0), (self.last_id, is_last)):
            if token >= 0:
                logits = jnp.where(is_now, transforms.only(logits, token), logits)
        return logits


@functools.partial(jax.jit, static_argnames=("max_new_tokens", "sampler", "eos_id", "pad_id", "rules"))
def generate(
    step: Callable,
    cache: Any,
    tokens: jax.Array,
    is_token: jax.Array,
    keys: jax.Array,
    first_index: jax.Array | int = 0,
    *,
    max_new_tokens: int,
    sampler: Sampler,
    eos_id: int | tuple[int, ...],
    pad_id: int,
    rules: Rules = Rules(),
) -> jax.Array:
    """Read the prompts, then choose up to `max_new_tokens` tokens for each row.

    Args:
      step: see the top of this file. The cache must have room for T + max_new_tokens - 1 slots.
      tokens, is_token: prompts [B, T], padded on either side, at least one token in each row.
      keys: [B] PRNG keys. Token i of a row is drawn with fold_in(key of the row, first_index + i), so that
        neither the other rows nor a split into several calls change it.
      eos_id: ends a row (or each of several does): after it there is only `pad_id`. The loop stops when every row
        has ended.
      rules: what may come when.
    Returns:
      int32 [B, max_new_tokens].
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens}: must be at least 1.")

    def choose_token(logits, is_done, i):
        fold = functools.partial(jax.random.fold_in, data=first_index + i)
        logits = rules(logits, first_index + i, i == max_new_tokens - 1)
        return jnp.where(is_done, pad_id, sampler(logits, jax.vmap(fold)(keys)))

    def ends(token):
        return jnp.isin(token, jnp.array(eos_id, jnp.int32))

    def go_on(carry):
        i, _, is_done, _, _ = carry
        return (i < max_new_tokens) & ~jnp.all(is_done)

    def one_token(carry):
        i, token, is_done, out, cache = carry
        logits, cache = step(token[:, None], ~is_done[:, None], cache)
        token = choose_token(logits, is_done, i)
        return i + 1, token, is_done | ends(token), out.at[:, i].set(token), cache

    logits, cache = step(tokens, is_token, cache)
    token = choose_token(logits, jnp.zeros(len(tokens), bool), 0)
    out = jnp.full((len(tokens), max_new_tokens), pad_id, jnp.int32).at[:, 0].set(token)
    carry = (1, token, ends(token), out, cache)
    return jax.lax.while_loop(go_on, one_token, carry)[3]
