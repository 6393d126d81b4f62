"""Prompt caching: a text that is read once and stands before every text of a run; and caches that begin with it."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from transformer_jax import sampling
from transformer_jax.errors import UserError
from transformer_jax.inference.batching import check_ids
from transformer_jax.inference.forward import prefill_chunk, step_function
from transformer_jax.inference.texts import check_tokens
from transformer_jax.models import GPT
from transformer_jax.models.prefix import Prefix
from transformer_jax.nn.kv_cache import KVCache
from transformer_jax.nn.kv_cache_kinds import make_cache
from transformer_jax.run import Run


def with_prefix(run: Run, text: str | Sequence[int] | np.ndarray | None, allow_special: bool = False) -> Run:
    """The run with a text before every text: its tokens are read once, and all rows and calls share what was read.

    `generate`, `complete`, `stream`, `score`, `logits` and `Session` then take what follows. Their results are those of
    the token ids of both together. A prefix that the run has already, trained or text, stays before the new one.

    Args:
      text: a text, or token ids; None: the run without any prefix.
      allow_special: special tokens inside the text become their ids. Never for untrusted text.
    Raises:
      UserError: a run that is no GPT; a text without tokens, or one that leaves no room for another in the context; as
        `Session.extend`.
    """
    if text is None:
        return dataclasses.replace(run, prefix=None)
    if not isinstance(run.model, GPT):
        rule = "an encoder reads each text as a whole, so no part of it can be read once"
        raise UserError(f"run: a {type(run.model).__name__} takes no text as a prefix: {rule}. Take a GPT.")
    if not isinstance(text, str | Sequence | np.ndarray):
        raise UserError(f"text: must be a string or a list of token ids, not of type {type(text).__name__}.")
    ids = encode_after_prefix(run, text, allow_special) if isinstance(text, str) else text
    if isinstance(text, str) and not len(ids):
        raise UserError("text='': has no token. Give at least one character, or None for no prefix.")
    (tokens,) = check_tokens(run, [ids])
    if len(tokens) >= run.decoder_context:
        raise UserError(
            f"text: {len(tokens)} tokens, and a prefix must leave room for a text in the context. Give at most "
            f"{run.decoder_context - 1}."
        )
    before = run.prefix or Prefix(0)
    length = before.length + len(tokens)
    cache = before.cache.with_capacity(length) if before.cache else make_cache(run.config.decoder, 1, length)
    step = step_function(run)
    chunk = prefill_chunk(run)
    for first in range(0, len(tokens), chunk):
        logits, cache = _read(step, tokens[None, first : first + chunk], cache)
    return dataclasses.replace(
        run, prefix=Prefix(length, cache, tokens=(*before.tokens, *tokens.tolist()), logits=logits)
    )


def prefix_tokens(run: Run) -> np.ndarray:
    """Token ids of the text that is the prefix of a run, int32 [P]; none for a trained prefix alone."""
    return np.array(run.prefix.tokens if run.prefix else (), np.int32)


def num_virtual(run: Run) -> int:
    """Number of a decoder's first positions that no token of a text stands for: those of a trained prefix."""
    return run.prefix.num_virtual if run.prefix and run.prefix.cache else 0


def encode_after_prefix(run: Run, text: str, allow_special: bool = False) -> np.ndarray:
    """Token ids of a text where it begins: after the text of the prefix, or else with the special tokens of a start.

    Raises:
      UserError: a token that the model does not know; `allow_special`, as `Tokenizer.encode_prompt`.
    """
    tokenizer = run.text_tokenizer
    encode = tokenizer.encode_continuation if len(prefix_tokens(run)) else tokenizer.encode_prompt
    ids = encode(text, allow_special)
    check_ids("text", [ids], tokenizer, run.config.decoder.vocab_size)
    return ids


def start_cache(run: Run, cache: KVCache, chunk: int = 0) -> KVCache:
    """The empty cache of a run's decoder after the prefix of the run, which takes slots in every row.

    Args:
      chunk: most tokens that the cache takes at once; 0: any number.
    """
    if run.prefix is None or run.prefix.cache is None:
        return cache
    length = run.prefix.length
    return _write(run.prefix.cache, cache, length, chunk or length, run.config.decoder.dtype)


@jax.jit
def _read(step: sampling.Step, tokens: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
    return step(tokens, jnp.ones(tokens.shape, bool), cache)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _write(prefix: KVCache, cache: KVCache, length: int, chunk: int, dtype: DTypeLike) -> KVCache:
    B = cache.num_rows
    has_slots = prefix.capacity > 0  # linear attention has sums, which are written at once
    for first in range(0, length, chunk if has_slots else length):
        num = min(chunk, length - first) if has_slots else length
        cache = cache.append(jnp.ones((B, num), bool))
        for layer in range(len(prefix.layers)):
            keys, values = (jnp.repeat(x, B, axis=0) for x in prefix.read(layer, dtype))
            if has_slots:
                keys, values = keys[:, first : first + num], values[:, first : first + num]
            cache = cache.write(layer, keys, values)
    return cache
