"""Prefill plans: the tokens to read, an empty cache, and sizes, for a full cache, a rolling cache or a source.

Few shapes are compiled, whatever the lengths: prompts are padded to a bucket, and caches have a bucket's slots.
"""

import functools
import sys
from typing import Any, NamedTuple

import jax
import numpy as np

from transformer_jax import sampling
from transformer_jax.inference.batching import bucket, pad_batch
from transformer_jax.inference.forward import step_function
from transformer_jax.models import Seq2Seq
from transformer_jax.nn.kv_cache import KVCache
from transformer_jax.nn.kv_cache_kinds import make_cache, make_rolling_cache
from transformer_jax.run import Run

SMALLEST_SOURCE_BUCKET = 8  # a source is read once for many tokens, so finer buckets pay: 8, 16, 24, 32, 48, ...
MIN_PROMPT_SLOTS = 64  # shorter prompts get the cache of a prompt this long, and so share the compiled decode loop


class Prefill(NamedTuple):
    """Inputs and sizes of a prefill, and of the segment of new tokens up to the next one."""

    cache: KVCache  # empty, except for a source
    tokens: np.ndarray  # [B, T] int32
    is_token: np.ndarray  # [B, T] bool
    trailing_padding: np.int32 | None  # columns at the end of `tokens` that are padding in every row
    segment_length: int  # new tokens before the next prefill
    output_length: int  # bucket with room for segment_length
    buffer_length: int  # length of the token buffer that logits processors see
    chunk: int  # positions that are read at once
    capacity: int = 0  # slots of a full cache, without the extra ones
    extra_slots: int = 0  # slots for refused drafts


def plan_prefill(run: Run, rows: list[np.ndarray], num_left: int, num_draft: int = 0) -> Prefill:
    """Full cache: as many of the `num_left` new tokens as the context has room for after the rows."""
    config = run.config.decoder
    context = config.max_len
    longest = max(map(len, rows))
    # One more token than there are slots: the last token chosen is not read.
    segment_length = min(num_left, context - longest + 1)
    output_length = bucket(segment_length, context)
    capacity = bucket(max(longest, MIN_PROMPT_SLOTS) + segment_length, context)
    extra_slots = _extra_slots(num_draft, len(rows), output_length)
    width = bucket(longest, context)
    tokens, is_token = pad_batch(rows, width, run.generation_defaults.pad_id, end=longest)
    return Prefill(
        make_cache(config, len(rows), capacity, extra_slots),
        tokens,
        is_token,
        trailing_padding=np.int32(width - longest),
        segment_length=segment_length,
        output_length=output_length,
        buffer_length=capacity + 1,
        chunk=sampling.PREFILL_CHUNK,
        capacity=capacity,
        extra_slots=extra_slots,
    )


def plan_rolling_prefill(run: Run, rows: list[np.ndarray], num_left: int) -> Prefill:
    """Rolling cache: rows of any length, and all `num_left` new tokens after one prefill."""
    config = run.config.decoder
    longest = max(map(len, rows))
    output_length = bucket(num_left, sys.maxsize)
    width = bucket(longest, sys.maxsize)
    tokens, is_token = pad_batch(rows, width, run.generation_defaults.pad_id, end=longest)
    chunk = bucket(config.window or sampling.PREFILL_CHUNK, sampling.PREFILL_CHUNK)  # about as long as the window
    return Prefill(
        make_rolling_cache(config, len(rows), chunk),
        tokens,
        is_token,
        trailing_padding=np.int32(width - longest),
        segment_length=num_left,
        output_length=output_length,
        buffer_length=width + output_length,
        chunk=chunk,
    )


def plan_source_prefill(run: Run, sources: list[np.ndarray], num_left: int, num_draft: int = 0) -> Prefill:
    """Seq2Seq: the encoder has read the sources, and the decoder reads the token that starts a target."""
    output_length = bucket(num_left, run.config.decoder.max_len)
    extra_slots = _extra_slots(num_draft, len(sources), output_length)
    inputs = prefill_source(run, sources, output_length, extra_slots)
    return Prefill(
        inputs.cache,
        inputs.tokens,
        inputs.is_token,
        trailing_padding=None,
        segment_length=num_left,
        output_length=output_length,
        buffer_length=1 + output_length,
        chunk=sampling.PREFILL_CHUNK,
        capacity=output_length,
        extra_slots=extra_slots,
    )


def _extra_slots(num_draft: int, num_rows: int, output_length: int) -> int:
    """Slots for refused drafts: 1.5x the new tokens in all, so that the rows of a batch rarely stall."""
    if not num_draft:
        return 0
    return num_draft + (output_length // 2 if num_rows > 1 else 0)


class StepInputs(NamedTuple):
    """First arguments of beam search and of a prefill: step function, cache, and the tokens to read."""

    step: jax.tree_util.Partial
    cache: KVCache
    tokens: np.ndarray  # [B, T] int32
    is_token: np.ndarray  # [B, T] bool


def prefill_source(run: Run, sources: list[np.ndarray], capacity: int, extra_slots: int = 0) -> StepInputs:
    """Read the sources of a Seq2Seq into a cache; the tokens to read next are those that start the targets."""
    longest = max(map(len, sources))
    width = bucket(longest, run.config.encoder.max_len, SMALLEST_SOURCE_BUCKET)
    source, is_token = pad_batch(sources, width, run.generation_defaults.pad_id, end=longest)
    cache = _encode_source(run.model, run.params, source, is_token, capacity, extra_slots)
    first = np.full((len(sources), 1), run.generation_defaults.start_id, np.int32)
    return StepInputs(step_function(run), cache, first, first >= 0)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _encode_source(
    model: Seq2Seq, params: Any, source: jax.Array, is_token: jax.Array, capacity: int, extra_slots: int
) -> Any:
    return model.apply({"params": params}, source, is_token, capacity, extra_slots, method="encode_source")


def beam_search_inputs(run: Run, prompts: list[np.ndarray], max_new_tokens: int) -> StepInputs:
    """Step function, cache and padded prompts for a beam search within the context."""
    if run.model.reads_source:
        return prefill_source(run, prompts, max_new_tokens)
    config = run.config.decoder
    width = min(bucket(max(map(len, prompts)), config.max_len), config.max_len - max_new_tokens)
    cache = make_cache(config, len(prompts), width + max_new_tokens)
    tokens, is_token = pad_batch(prompts, width, run.generation_defaults.pad_id, end=width)
    return StepInputs(step_function(run), cache, tokens, is_token)
