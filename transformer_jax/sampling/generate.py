"""Decoding, one token at a time, inside one compiled loop. No model here: only its step function.

`step(tokens [B, T], is_token [B, T], cache) -> (logits of each row's last token [B, V], cache)` is all
that is known of it. Pass a `jax.tree_util.Partial` over the parameters, so that they are arguments of the
compiled program and not constants in it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.config import choose
from transformer_jax.sampling import logits as transforms


def _greedy(logits, keys):
    return jnp.argmax(logits, axis=-1)


def _sample(logits, keys):
    return jax.vmap(jax.random.categorical)(keys, logits)


CHOICES = {"sample": _sample, "greedy": _greedy}  # of equals, greedy takes the smaller id


class Generated(NamedTuple):
    """What the rows go on with. Log-probabilities are natural, and the model's own: before any method."""

    tokens: jax.Array  # int32 [B, max_new_tokens]; EOS and stop sequences included, pad_id after the end
    lengths: jax.Array  # int32 [B]: new tokens, EOS included
    log_probs: jax.Array  # float32 [B, max_new_tokens] of each token; 0 after the end
    top_tokens: jax.Array  # int32 [B, max_new_tokens, num_top]: the likeliest at each place, likeliest first; or pad_id
    top_log_probs: jax.Array  # float32 [B, max_new_tokens, num_top]
    states: tuple  # of the methods, for a call that goes on


@functools.partial(
    jax.jit, static_argnames=("max_new_tokens", "choice", "eos_ids", "pad_id", "stop_sequences", "num_top")
)
def generate(
    step: Callable,
    cache: Any,
    tokens: jax.Array,
    is_token: jax.Array,
    keys: jax.Array,
    first_index: jax.Array | int = 0,
    methods: tuple = (),
    states: tuple | None = None,
    *,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    choice: str = "sample",
    stop_sequences: tuple[tuple[int, ...], ...] = (),
    num_top: int = 0,
) -> Generated:
    """Read the prompts, then choose up to `max_new_tokens` tokens for each row.

    Args:
      step: see the top of this file. The cache must have room for T + max_new_tokens - 1 slots.
      tokens, is_token: prompts [B, T], padded on either side, at least one token in each row.
      keys: [B] PRNG keys. Token i of a row is drawn with fold_in(key of the row, first_index + i), so that
        neither the other rows nor a split into several calls change it.
      methods: what is done to the logits before a token is chosen, in this order: logits.py, rules.py, constrain.py.
      states: of the methods, where an earlier call ended (its `first_index` tokens are in the prompts); None: new.
      eos_ids: each ends a row: after it there is only `pad_id`. The loop stops when every row has ended. So does a
        row whose every token is ruled out.
      choice: a name in CHOICES.
      stop_sequences: each ends a row when its newest tokens, none of them the prompt's, are these.
      num_top: how many of the likeliest tokens to tell at each place.
    Raises:
      UserError: max_new_tokens below 1, an unknown choice, num_top or an id below 0, an empty stop sequence.
    """
    transforms.check(max_new_tokens >= 1, "max_new_tokens", max_new_tokens, "must be at least 1")
    transforms.check(num_top >= 0, "num_top", num_top, "must be at least 0")
    transforms.check(all(token >= 0 for token in eos_ids), "eos_ids", eos_ids, "must be token ids, 0 or more")
    transforms.check(all(stop_sequences), "stop_sequences", stop_sequences, "must have a token or more each")
    choose_one, B = choose(CHOICES, choice, "choice"), len(tokens)
    text, prompt_lengths = left_aligned(tokens, is_token, max_new_tokens)
    if states is None:
        states = transforms.start(methods, text, prompt_lengths, max_new_tokens)

    def ends(token, text, lengths):
        is_end = jnp.isin(token, jnp.array(eos_ids, jnp.int32))
        for sequence in stop_sequences:
            at = lengths[:, None] - len(sequence) + jnp.arange(len(sequence))
            newest = jnp.take_along_axis(text, jnp.maximum(at, 0), axis=1)
            is_new = lengths - len(sequence) >= prompt_lengths - first_index
            is_end |= jnp.all(newest == jnp.array(sequence), axis=1) & is_new
        return is_end

    def choose_tokens(i, logits, is_done, text, found):
        """Token i of each row: whether the rows are done now, the texts with it, and what was found."""
        logits, lengths = logits.astype(jnp.float32), prompt_lengths + i
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        logits, states = transforms.apply(methods, logits, text, lengths, found.states)
        is_done |= jnp.all(logits <= transforms.RULED_OUT, axis=-1)
        row_keys = jax.vmap(functools.partial(jax.random.fold_in, data=first_index + i))(keys)
        token = jnp.where(is_done, pad_id, choose_one(logits, row_keys).astype(jnp.int32))
        log_prob = jnp.take_along_axis(log_probs, token[:, None], axis=1, mode="fill", fill_value=0.0)[:, 0]
        top_log_probs, top_tokens = jax.lax.top_k(log_probs, num_top)
        text = text.at[jnp.arange(B), lengths].set(token)
        found = Generated(
            found.tokens.at[:, i].set(token),
            found.lengths + ~is_done,
            found.log_probs.at[:, i].set(jnp.where(is_done, 0.0, log_prob)),
            found.top_tokens.at[:, i].set(jnp.where(is_done[:, None], pad_id, top_tokens)),
            found.top_log_probs.at[:, i].set(jnp.where(is_done[:, None], 0.0, top_log_probs)),
            states,
        )
        return is_done | ends(token, text, lengths + 1), text, found

    def go_on(carry):
        i, is_done, _, _, _ = carry
        return (i < max_new_tokens) & ~jnp.all(is_done)

    def one_token(carry):
        i, is_done, text, found, cache = carry
        logits, cache = step(found.tokens[:, i - 1, None], ~is_done[:, None], cache)
        return i + 1, *choose_tokens(i, logits, is_done, text, found), cache

    logits, cache = step(tokens, is_token, cache)
    padding = jnp.full((B, max_new_tokens, num_top), pad_id, jnp.int32)
    zeros = jnp.zeros((B, max_new_tokens), jnp.float32)
    found = Generated(jnp.full(zeros.shape, pad_id, jnp.int32), jnp.zeros(B, jnp.int32), zeros, padding,
                      jnp.zeros(padding.shape, jnp.float32), states)  # fmt: skip
    carry = (1, *choose_tokens(0, logits, jnp.zeros(B, bool), text, found), cache)
    return jax.lax.while_loop(go_on, one_token, carry)[3]


def left_aligned(tokens: jax.Array, is_token: jax.Array, num_more: int) -> tuple[jax.Array, jax.Array]:
    """Texts [B, T + num_more], each from place 0 on and 0 beyond, and how many tokens they have [B]."""
    order = jnp.argsort(~jnp.asarray(is_token), axis=1, stable=True)
    tokens = jnp.take_along_axis(jnp.where(is_token, tokens, 0), order, axis=1).astype(jnp.int32)
    return jnp.pad(tokens, ((0, 0), (0, num_more))), jnp.sum(is_token, axis=1, dtype=jnp.int32)
