"""Prefill plans: the tokens to read, an empty cache, and sizes, for a full cache, a rolling cache or a source.

Few shapes are compiled, whatever the lengths: prompts are padded to a bucket, and caches have a bucket's slots.
"""

import dataclasses
import functools
import sys
from typing import NamedTuple

import jax
import numpy as np

from transformer_jax import sampling
from transformer_jax.inference.batching import bucket, pad_batch
from transformer_jax.inference.generation_config import GenerationConfig
from transformer_jax.inference.prefix import num_virtual, prefix_tokens, start_cache
from transformer_jax.models import Params, Seq2Seq
from transformer_jax.nn.kv_cache import KVCache
from transformer_jax.nn.kv_cache_kinds import make_cache, make_rolling_cache
from transformer_jax.run import Run

SMALLEST_SOURCE_BUCKET = 8  # a source is read once for many tokens, so finer buckets pay: 8, 16, 24, 32, 48, ...
MIN_PROMPT_SLOTS = 64  # shorter prompts get the cache of a prompt this long, and so share the compiled decode loop


class Prefill(NamedTuple):
    """Inputs of a prefill, and sizes of the segment of new tokens up to the next one."""

    cache: KVCache  # empty, except for a source
    prompts: sampling.Prompts
    spec: sampling.DecodeSpec  # with room for `segment_length` new tokens
    segment_length: int  # new tokens before the next prefill
    capacity: int = 0  # slots of a full cache, without the extra ones
    extra_slots: int = 0  # slots for refused drafts


def plan_prefill(run: Run, rows: list[np.ndarray], num_left: int, spec: sampling.DecodeSpec) -> Prefill:
    """Full cache: as many of the `num_left` new tokens as the context has room for after the rows."""
    context = run.decoder_context + len(prefix_tokens(run))
    longest = max(map(len, rows))
    # One more token than there are slots: the last token chosen is not read.
    segment_length = min(num_left, context - longest + 1)
    output_length = bucket(segment_length, context)
    capacity = bucket(max(longest, MIN_PROMPT_SLOTS) + segment_length, context)
    extra_slots = _extra_slots(spec.num_draft, len(rows), output_length)
    cache = make_cache(run.config.decoder, len(rows), capacity + num_virtual(run), extra_slots)
    return Prefill(
        start_cache(run, cache),
        padded_prompts(run, rows, capacity),
        dataclasses.replace(spec, max_new_tokens=output_length, buffer_length=capacity + 1),
        segment_length,
        capacity,
        extra_slots,
    )


def plan_rolling_prefill(run: Run, rows: list[np.ndarray], num_left: int, spec: sampling.DecodeSpec) -> Prefill:
    """Rolling cache: rows of any length, and all `num_left` new tokens after one prefill."""
    config = run.config.decoder
    output_length = bucket(num_left, sys.maxsize)
    chunk = _rolling_chunk(run)
    prompts = padded_prompts(run, rows, sys.maxsize)
    buffer_length = len(prefix_tokens(run)) + prompts.tokens.shape[1] + output_length
    return Prefill(
        start_cache(run, make_rolling_cache(config, len(rows), chunk), chunk),
        prompts,
        dataclasses.replace(spec, max_new_tokens=output_length, buffer_length=buffer_length, chunk=chunk),
        segment_length=num_left,
    )


def plan_source_prefill(run: Run, sources: list[np.ndarray], num_left: int, spec: sampling.DecodeSpec) -> Prefill:
    """Seq2Seq: the encoder has read the sources, and the decoder reads the token that starts a target."""
    output_length = bucket(num_left, run.decoder_context)
    extra_slots = _extra_slots(spec.num_draft, len(sources), output_length)
    return Prefill(
        *prefill_source(run, sources, output_length, extra_slots),
        dataclasses.replace(spec, max_new_tokens=output_length, buffer_length=1 + output_length),
        segment_length=num_left,
        capacity=output_length,
        extra_slots=extra_slots,
    )


def plan_extension(
    run: Run, cache: KVCache, num_tokens: int, given: np.ndarray, config: GenerationConfig, spec: sampling.DecodeSpec
) -> Prefill:
    """Given tokens [T] at the end of a text of `num_tokens` in all, whose other tokens are in the cache of one row."""
    context = sys.maxsize if config.on_overflow == "slide" else run.decoder_context + len(prefix_tokens(run))
    capacity = bucket(num_tokens + config.max_new_tokens, context)
    if config.on_overflow == "slide":
        spec = dataclasses.replace(spec, chunk=_rolling_chunk(run))
    # Padding must not take slots that the cache does not have.
    width = min(bucket(max(1, len(given)), context), capacity - num_tokens + len(given))
    tokens, is_token = pad_batch([given], width, run.generation_defaults.pad_id)
    return Prefill(
        cache.with_capacity(capacity + num_virtual(run)),
        sampling.Prompts(tokens, is_token, np.int32(width - len(given))),
        dataclasses.replace(spec, max_new_tokens=bucket(config.max_new_tokens, context), buffer_length=capacity + 1),
        segment_length=config.max_new_tokens,
    )


def _rolling_chunk(run: Run) -> int:
    """Positions that are read at once into a rolling cache: about as many as the window has."""
    return bucket(run.config.decoder.window or sampling.PREFILL_CHUNK, sampling.PREFILL_CHUNK)


def padded_prompts(run: Run, rows: list[np.ndarray], capacity: int) -> sampling.Prompts:
    """Prompts that end where the longest one does, and padding behind it up to a bucket.

    Args:
      rows: with the text of the prefix at the start of each. capacity: most tokens of a row.
    """
    before = prefix_tokens(run)
    rows = [row[len(before) :] for row in rows]
    longest = max(map(len, rows))
    width = bucket(longest, capacity - len(before))
    tokens, is_token = pad_batch(rows, width, run.generation_defaults.pad_id, end=longest)
    return sampling.Prompts(tokens, is_token, np.int32(width - longest), before=before if len(before) else None)


def _extra_slots(num_draft: int, num_rows: int, output_length: int) -> int:
    """Slots for refused drafts: 1.5x the new tokens in all, so that the rows of a batch rarely stall."""
    if not num_draft:
        return 0
    return num_draft + (output_length // 2 if num_rows > 1 else 0)


def prefill_source(
    run: Run, sources: list[np.ndarray], capacity: int, extra_slots: int = 0
) -> tuple[KVCache, sampling.Prompts]:
    """Read the sources of a Seq2Seq into a cache; the tokens to read next are those that start the targets."""
    longest = max(map(len, sources))
    width = bucket(longest, run.encoder_context, SMALLEST_SOURCE_BUCKET)
    source, is_token = pad_batch(sources, width, run.generation_defaults.pad_id, end=longest)
    cache = _encode_source(run.model, run.variables, source, is_token, capacity + num_virtual(run), extra_slots)
    cache = start_cache(run, cache)
    first = np.full((len(sources), 1), run.generation_defaults.start_id, np.int32)
    return cache, sampling.Prompts(first, first >= 0)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _encode_source(
    model: Seq2Seq, variables: Params, source: jax.Array, is_token: jax.Array, capacity: int, extra_slots: int
) -> KVCache:
    cache = model.apply(variables, source, is_token, capacity, extra_slots, method="encode_source")
    assert isinstance(cache, KVCache)
    return cache


def beam_search_inputs(run: Run, rows: list[np.ndarray], max_new_tokens: int) -> tuple[KVCache, sampling.Prompts]:
    """Cache and padded prompts for a beam search within the context."""
    if run.model.reads_source:
        return prefill_source(run, rows, max_new_tokens)
    context = run.decoder_context
    before = prefix_tokens(run)
    rows = [row[len(before) :] for row in rows]
    width = min(bucket(max(map(len, rows)), context), context - max_new_tokens)
    tokens, is_token = pad_batch(rows, width, run.generation_defaults.pad_id, end=width)
    num_before = len(before) + num_virtual(run)
    cache = start_cache(run, make_cache(run.config.decoder, len(rows), num_before + width + max_new_tokens))
    return cache, sampling.Prompts(tokens, is_token, before=before if len(before) else None)
