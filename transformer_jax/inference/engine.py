"""How rows of tokens are written with a run: what is read when, in which shapes, and where each row ends.

Only few shapes are compiled, whatever the lengths: prompts are padded to a bucket, caches have a bucket's slots, and
the loop takes the number of tokens as a number. Results do not depend on the bucket: padding is on the left up to
the longest prompt, and the cache takes back the slots of the padding behind it.
"""

import functools
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import sampling
from transformer_jax.inference.draft_model import DraftSource
from transformer_jax.models import Seq2Seq
from transformer_jax.nn.kv_cache import DecodeCache, as_type, make_cache, make_rolling_cache
from transformer_jax.run import Run, step_function
from transformer_jax.tokenizers.token_bytes import settled_text

SMALLEST_BUCKET = 32  # of prompts and caches: 32, 64, 96, 128, 192, 256, 384, 512, ... up to the context
SMALLEST_SOURCE = 8  # of sources, which are read once for many tokens: 8, 16, 24, 32, 48, ...
USUAL_PROMPT = 64  # shorter prompts have the cache of one so long: then they share the loop too
STOP_TOKENS = 16  # written between two looks for stop strings


def bucket(size: int, most: int, smallest: int = SMALLEST_BUCKET) -> int:
    """The smallest bucket that has room for `size`, but no more than `most`: `smallest`, 2, 3, 4, 6, 8, ... times it.

    Every slot is read at every step, so that 192 tokens in 256 slots cost a tenth more.
    """
    double = max(smallest, 1 << (size - 1).bit_length())
    between = double // 4 * 3
    return min(between if max(size, 3 * smallest) <= between else double, most)


class Prefill(NamedTuple):
    """What is read before tokens are written."""

    cache: DecodeCache  # with nothing in it but a source
    tokens: np.ndarray  # [B, T]
    is_token: np.ndarray  # [B, T]
    unused: np.int32 | None  # places at the end of `tokens` that no row has
    piece: int  # tokens that are written before there is something to read again,
    num_places: int  # and the bucket that has room for them
    text_size: int  # places that processors have for the whole text
    chunk: int  # places that are read at once
    capacity: int = 0  # slots of the cache, without spare ones


class Engine:
    """Rows of a run as they are written, some tokens at a time: `write`, until `is_done`.

    A row ends at a token that ends texts ("eos"), where its text has a stop string ("stop"), after `num_new` tokens
    ("length"), or where every token is ruled out ("ruled_out"). What outgrows the context is read again, unless it
    `slides`.
    """

    def __init__(
        self,
        run: Run,
        prompts: list[np.ndarray],
        keys: jax.Array,
        processors: tuple,
        choice: str,
        num_new: int,
        stop: tuple[str, ...] = (),
        num_top: int = 0,
        draft_source: DraftSource | None = None,
        slides: bool = False,
        cache_type: str = "model",
    ):
        self.draft_source, self._ahead = draft_source, None
        self.num_drafted = self.num_accepted = np.zeros(len(prompts), np.int32)  # drafted tokens of each row
        self.run, self.prompts, self.keys, self.processors = run, prompts, keys, processors
        self.num_new, self.stop, self.num_top = num_new, stop, num_top
        self.slides, self.cache_type = slides, cache_type
        self.settings = dict(
            choice=choice, eos_ids=run.generation_defaults.eos_ids, pad_id=run.generation_defaults.pad_id
        )
        self.is_target = isinstance(run.model, Seq2Seq)
        nothing = np.zeros(0, np.int32)
        self.tokens = [nothing] * len(prompts)  # new ones of each row, the one that ends it included
        self.log_probs = [nothing.astype(np.float32)] * len(prompts)
        self.top = [(nothing.reshape(0, num_top), nothing.astype(np.float32).reshape(0, num_top))] * len(prompts)
        self.finish, self.stop_at = [""] * len(prompts), [-1] * len(prompts)
        self.num_written = 0  # tokens of rows that have not ended
        lengths = jnp.array([1 if self.is_target else len(row) for row in prompts], jnp.int32)
        self._states = sampling.start(processors, jnp.zeros((len(prompts), 0), jnp.int32), lengths, num_new)
        self._heads = ["" if self.is_target else run.tokenizer.decode(row) for row in prompts] if run.tokenizer else []
        self._decode, self._first, self._piece = None, 0, 0  # of what was read last: its first token, and its size

    @property
    def is_done(self) -> bool:
        """Whether all rows have ended."""
        return all(self.finish)

    def write(self, num_tokens: int) -> None:
        """Add up to so many tokens to each row that has not ended."""
        until = min(self.num_written + num_tokens, self.num_new)
        while not self.is_done and self.num_written < until:
            if self._decode is None or self.num_written == self._first + self._piece:
                self._read()
            num = np.int32(min(until - self._first, self._piece))
            if num > 1:
                self._advance(num)
            self._take(int(num))

    def _advance(self, until: np.int32) -> None:
        first, draft_source = np.int32(self._first), self.draft_source
        if draft_source is None:
            self._decode = sampling.decode(
                step_function(self.run), self._decode, self.keys, until, first, self.processors, **self.settings
            )
            return
        verify, most = step_function(self.run, last_only=False), np.int32(self._piece)
        self._decode, self._ahead = sampling.decode_speculative(
            verify,
            self._decode,
            self._ahead,
            self.keys,
            until,
            most,
            first,
            self.processors,
            draft_source.step,
            num_draft=draft_source.num_draft,
            prompt_lookup=draft_source.prompt_lookup,
            **self.settings,
        )

    def text(self, i: int) -> str:
        """What row i goes on with after its prompt; before its end, the part that no later token changes."""
        row = self._row(i)
        text = self.run.tokenizer.decode(row) if self.finish[i] else settled_text(self.run.tokenizer, row)
        text = text[len(self._heads[i]) :]
        return text[: self.stop_at[i]] if self.stop_at[i] >= 0 else text

    def _row(self, i: int, num: int | None = None) -> np.ndarray:
        tokens = self.tokens[i][:num]
        return tokens if self.is_target else np.concatenate([self.prompts[i], tokens])

    def _read(self) -> None:
        """Read the rows, or the last half of the context where they have outgrown it, and choose a token for each."""
        self._first, num_left = self.num_written, self.num_new - self.num_written
        read = self._from_sources if self.is_target else self._past_context if self.slides else self._in_context
        reading = read(num_left)
        self._piece = reading.piece
        self._decode = sampling.prefill(
            step_function(self.run),
            as_type(reading.cache, self.cache_type),
            reading.tokens,
            reading.is_token,
            self.keys,
            np.int32(num_left),
            np.int32(self._first),
            self.processors,
            self._states,
            reading.unused,
            num_places=reading.num_places,
            text_size=reading.text_size,
            num_top=self.num_top,
            chunk=reading.chunk,
            **self.settings,
        )
        if self.draft_source is not None:
            self._begin_ahead(reading)
        self._hold()

    def _from_sources(self, num_left: int) -> Prefill:
        """Of a Seq2Seq: the encoder reads the prompts, the decoder the token that starts a target."""
        places = bucket(num_left, self.run.config.decoder.max_len)
        _, cache, tokens, is_token = begin_targets(self.run, self.prompts, places, self._extra_slots(places))
        return Prefill(cache, tokens, is_token, None, num_left, places, 1 + places, sampling.CHUNK, places)

    def _in_context(self, num_left: int) -> Prefill:
        """All that fits into the context, as many tokens as there is room for then."""
        context, rows = self.run.config.max_len, [self._row(i) for i in range(len(self.prompts))]
        if self._first:
            rows = [row[-max(context // 2, 1) :] for row in rows]
        longest = max(map(len, rows))
        # So many more have slots: the last token chosen is not read.
        piece = min(num_left, context - longest + 1)
        places, capacity = bucket(piece, context), bucket(max(longest, USUAL_PROMPT) + piece, context)
        tokens, is_token = batch(rows, longest, bucket(longest, context), self.run.generation_defaults.pad_id)
        cache = make_cache(self.run.config, len(rows), capacity, self._extra_slots(places))
        unused = np.int32(tokens.shape[1] - longest)
        return Prefill(cache, tokens, is_token, unused, piece, places, capacity + 1, sampling.CHUNK, capacity)

    def _past_context(self, num_left: int) -> Prefill:
        """Rows of any length, into a ring of slots."""
        longest = max(map(len, self.prompts))
        places, width = bucket(num_left, sys.maxsize), bucket(longest, sys.maxsize)
        tokens, is_token = batch(self.prompts, longest, width, self.run.generation_defaults.pad_id)
        chunk = bucket(self.run.config.window or sampling.CHUNK, sampling.CHUNK)  # about as long as the window
        cache = make_rolling_cache(self.run.config, len(self.prompts), chunk)
        unused = np.int32(width - longest)
        return Prefill(cache, tokens, is_token, unused, num_left, places, width + places, chunk)

    def _extra_slots(self, places: int) -> int:
        """Slots for drafts that are refused; with half as many more as there are new ones, rows need hardly wait."""
        if self.draft_source is None:
            return 0
        return self.draft_source.num_draft + (places // 2 if len(self.prompts) > 1 else 0)

    def _begin_ahead(self, reading: Prefill) -> None:
        """The run that drafts, if there is one, reads what the other has read."""
        draft, cache, before = self.draft_source.run, None, self._ahead
        size = reading.capacity, self._extra_slots(reading.num_places)
        if draft is not None and self.is_target:
            cache = begin_targets(draft, self.prompts, *size)[1]
        elif draft is not None:
            cache = make_cache(draft.config, len(reading.tokens), *size)
        self._ahead = sampling.prefill_speculative(
            reading.tokens, reading.is_token, self.draft_source.step, cache, reading.unused
        )
        if before is not None:
            self._ahead = self._ahead._replace(num_drafted=before.num_drafted, num_accepted=before.num_accepted)

    def _hold(self) -> None:
        """Rows that have ended here are to end there as well."""
        ended = np.array([bool(finish) for finish in self.finish])
        if ended.any():
            self._decode = self._decode._replace(is_done=self._decode.is_done | ended)

    def _take(self, num: int) -> None:
        """Fetch what was chosen, up to token `num` of what was read last, and see which rows have ended."""
        found, first = self._decode.found, self.num_written - self._first
        self._states = found.states
        if self._ahead is not None:
            self.num_drafted, self.num_accepted = jax.device_get((self._ahead.num_drafted, self._ahead.num_accepted))
        tokens, log_probs, lengths, top_tokens, top_log_probs = jax.device_get(
            (found.tokens, found.log_probs, found.lengths, found.top_tokens, found.top_log_probs)
        )
        for i, finish in enumerate(self.finish):
            if finish:
                continue
            end = min(int(lengths[i]), num)
            self.tokens[i] = np.append(self.tokens[i], tokens[i, first:end])
            self.log_probs[i] = np.append(self.log_probs[i], log_probs[i, first:end])
            both = zip(self.top[i], (top_tokens[i, first:end], top_log_probs[i, first:end]), strict=True)
            self.top[i] = tuple(np.concatenate(pair) for pair in both)
            if end > first and tokens[i, end - 1] in self.settings["eos_ids"]:
                self.finish[i] = "eos"
            elif end < num:
                self.finish[i] = "ruled_out"
            elif self._first + num == self.num_new:
                self.finish[i] = "length"
            if self.stop:
                self._stop(i, end - first)
        self.num_written = self._first + num
        if self.stop:
            self._hold()

    def _stop(self, i: int, num_newest: int) -> None:
        """End row i after the first token with which its text has a stop string, if there is one."""
        num = len(self.tokens[i])
        if self._place_of_stop(i, num) < 0:
            return
        num = next(n for n in range(max(num - num_newest, 0), num + 1) if self._place_of_stop(i, n) >= 0)
        self.stop_at[i], self.finish[i] = self._place_of_stop(i, num), "stop"
        self.tokens[i], self.log_probs[i] = self.tokens[i][:num], self.log_probs[i][:num]
        self.top[i] = tuple(of_tokens[:num] for of_tokens in self.top[i])

    def _place_of_stop(self, i: int, num: int) -> int:
        """Where the text of the first `num` new tokens has the first stop string; -1: it has none."""
        is_whole = self.finish[i] and num == len(self.tokens[i])
        text_of = self.run.tokenizer.decode if is_whole else functools.partial(settled_text, self.run.tokenizer)
        text = text_of(self._row(i, num))[len(self._heads[i]) :]
        return min((place for place in map(text.find, self.stop) if place >= 0), default=-1)


def write_all(
    run: Run, prompts: list[np.ndarray], keys: jax.Array, processors: tuple, choice: str, num_new: int
) -> list[np.ndarray]:
    """The new tokens of each row, all at once."""
    writer = Engine(run, prompts, keys, processors, choice, num_new)
    writer.write(num_new)
    return writer.tokens


def cut(tokens: jax.Array, lengths: jax.Array) -> list[np.ndarray]:
    """Each row up to its length."""
    return [row[:length] for row, length in zip(np.asarray(tokens), np.asarray(lengths).tolist(), strict=True)]


def batch(rows: list[np.ndarray], longest: int, width: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that end at place `longest`, with padding on both sides, and where they are: [B, width] each."""
    lengths, place = np.array([[len(row)] for row in rows]), np.arange(width)
    is_token = (place >= longest - lengths) & (place < longest)
    tokens = np.full((len(rows), width), pad_id, np.int32)
    tokens[is_token] = np.concatenate(rows)
    return tokens, is_token


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _start(model: Seq2Seq, params: Any, source: jax.Array, is_token: jax.Array, capacity: int, extra_slots: int) -> Any:
    return model.apply({"params": params}, source, is_token, capacity, extra_slots, method="start")


def begin_targets(run: Run, sources: list[np.ndarray], capacity: int, extra_slots: int = 0) -> tuple:
    """What decoding wants: the step, a cache that has read the sources, the first token of each, and that it is one."""
    longest = max(map(len, sources))
    width = bucket(longest, run.config.encoder.max_len, SMALLEST_SOURCE)
    source, is_token = batch(sources, longest, width, run.generation_defaults.pad_id)
    first = np.full((len(sources), 1), run.generation_defaults.start_id, np.int32)
    cache = _start(run.model, run.params, source, is_token, capacity, extra_slots)
    return step_function(run), cache, first, first >= 0
