"""Batched generation engine: prefill, decode loop, stop conditions.

Few shapes are compiled, whatever the lengths: prompts are padded to a bucket, caches have a bucket's slots, and the
decode loop takes the number of tokens as an argument. Results do not depend on the bucket: padding is on the left, up
to the longest prompt, and the cache gives back the slots of the padding behind it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import sampling
from transformer_jax.inference.batching import known_ids
from transformer_jax.inference.draft_model import open_draft_model
from transformer_jax.inference.forward import prefill_chunk, step_function
from transformer_jax.inference.generation_config import GenerationConfig
from transformer_jax.inference.prefill import (
    Prefill,
    plan_extension,
    plan_prefill,
    plan_rolling_prefill,
    plan_source_prefill,
    prefill_source,
)
from transformer_jax.inference.prefix import num_virtual, prefix_tokens, start_cache
from transformer_jax.nn.kv_cache_kinds import make_cache
from transformer_jax.run import Run
from transformer_jax.tokenizers.token_bytes import settled_text

STOP_CHECK_TOKENS = 16  # new tokens between two searches for stop strings


class Engine:
    """Rows of a run while they are generated: call `advance` until `is_done`.

    A row ends at an end token ("eos"), where its text contains a stop string ("stop"), after `max_new_tokens` tokens
    ("length"), or where every token is ruled out ("ruled_out"). Rows that outgrow the context are prefilled again with
    its last half, after the prefix of the run, unless they use a rolling cache. A prompt begins with the text of the
    prefix.
    """

    def __init__(
        self,
        run: Run,
        prompts: list[np.ndarray],
        config: GenerationConfig,
        params: sampling.SamplingParams,
        num_top: int = 0,
    ):
        self.run = run
        self.prompts = prompts
        self.config = config
        self._draft = open_draft_model(config, run)
        self._params = params
        self._spec = sampling.DecodeSpec(
            max_new_tokens=config.max_new_tokens,
            eos_ids=run.generation_defaults.eos_ids,
            pad_id=run.generation_defaults.pad_id,
            method=config.method,
            num_top=num_top,
            num_draft=config.num_draft if config.draft or config.prompt_lookup else 0,
            prompt_lookup=config.prompt_lookup,
            chunk=prefill_chunk(run),
            num_virtual=num_virtual(run),
        )
        # Results, row by row.
        B = len(prompts)
        no_log_probs = np.zeros(0, np.float32)
        no_top = (np.zeros((0, num_top), np.int32), np.zeros((0, num_top), np.float32))
        self.tokens = [np.zeros(0, np.int32)] * B  # new tokens, the end token included
        self.log_probs = [no_log_probs] * B
        self.top: list[tuple[np.ndarray, ...]] = [no_top] * B  # ids and log-probabilities [T, num_top]
        self.finish = [""] * B
        self.stop_index = [-1] * B  # index of the stop string in the new text; -1: none
        self.num_drafted = np.zeros(B, np.int32)
        self.num_accepted = np.zeros(B, np.int32)
        self.num_generated = 0  # new tokens of the rows that have not ended
        # Where decoding stands.
        lengths = jnp.array([1 if run.model.reads_source else len(row) for row in prompts], jnp.int32)
        no_text = jnp.zeros((B, 0), jnp.int32)
        self._processor_states = sampling.init_states(params.processors, no_text, lengths, config.max_new_tokens)
        self._prompt_texts = []
        if tokenizer := run.tokenizer:
            self._prompt_texts = [
                "" if run.model.reads_source else tokenizer.decode(known_ids(row, tokenizer)) for row in prompts
            ]
        self.state: sampling.DecodeState | None = None
        self._speculative: sampling.SpeculativeState | None = None
        self._segment_start = 0  # index of the first new token after the latest prefill
        self._segment_length = 0

    @property
    def is_done(self) -> bool:
        """True once all rows have ended."""
        return all(self.finish)

    @property
    def is_speculative(self) -> bool:
        """True if tokens are drafted: by a draft model or by prompt lookup."""
        return self._spec.num_draft > 0

    def advance(self, num_tokens: int) -> None:
        """Generate up to `num_tokens` more tokens for each row that has not ended."""
        step = step_function(self.run)
        end = min(self.num_generated + num_tokens, self.config.max_new_tokens)
        while not self.is_done and self.num_generated < end:
            state = self.state
            if state is None or self.num_generated == self._segment_start + self._segment_length:
                plan = self._plan_prefill()
                state = sampling.prefill(step, plan.cache, plan.prompts, self._params, plan.spec)
                state = self._with_ended_rows(state)
            num = np.int32(min(end - self._segment_start, self._segment_length))
            if num > 1 and self._speculative is None:  # prefill has chosen the first token
                state = sampling.decode(step, state, self._params, self._spec, num)
            elif num > 1:
                verify = step_function(self.run, last_only=False)
                drafting = None if self._draft is None else step_function(self._draft)
                state, self._speculative = sampling.decode_speculative(
                    verify, state, self._speculative, self._params, self._spec, num, drafting
                )
            self.state = state
            self._collect(state, int(num))

    def continue_from(self, state: sampling.DecodeState, given: np.ndarray) -> None:
        """Begin with the state of an earlier engine of one row, which has read all but the `given` end of the text.

        This takes the place of a prefill; only the given tokens are read, and the newest one of the earlier engine.
        """
        plan = plan_extension(self.run, state.cache, len(self.prompts[0]), given, self.config, self._spec)
        self._begin_segment(plan)
        num_more = max(0, plan.spec.buffer_length - state.token_buffer.shape[1])
        token_buffer = jnp.pad(state.token_buffer, ((0, 0), (0, num_more)))
        state = state._replace(cache=plan.cache, token_buffer=token_buffer)
        prompts = plan.prompts._replace(states=self._processor_states)
        self.state = sampling.extend(step_function(self.run), state, prompts, self._params, plan.spec)

    def text(self, i: int) -> str:
        """New text of row i; while the row has not ended, the part that no later token changes."""
        text = self._new_text(i, len(self.tokens[i]))
        return text[: self.stop_index[i]] if self.stop_index[i] >= 0 else text

    def _new_text(self, i: int, num_tokens: int) -> str:
        """Text of the first `num_tokens` new tokens of row i."""
        tokenizer = self.run.text_tokenizer
        is_complete = self.finish[i] and num_tokens == len(self.tokens[i])
        row = known_ids(self._row(i, num_tokens), tokenizer)
        text = tokenizer.decode(row) if is_complete else settled_text(tokenizer, row)
        return text[len(self._prompt_texts[i]) :]

    def _row(self, i: int, num_new: int | None = None) -> np.ndarray:
        tokens = self.tokens[i][:num_new]
        return tokens if self.run.model.reads_source else np.concatenate([self.prompts[i], tokens])

    # Prefill

    def _plan_prefill(self) -> Prefill:
        """Begin a segment: the rows to read, or the last half of the context once they have outgrown it."""
        self._segment_start = self.num_generated
        num_left = self.config.max_new_tokens - self.num_generated
        if self.run.model.reads_source:
            plan = plan_source_prefill(self.run, self.prompts, num_left, self._spec)
        elif self.config.on_overflow == "slide":
            plan = plan_rolling_prefill(self.run, self.prompts, num_left, self._spec)
        else:
            rows = [self._row(i) for i in range(len(self.prompts))]
            if self._segment_start:
                before = prefix_tokens(self.run)  # it stays
                num_kept = max(self.run.decoder_context // 2, 1)
                rows = [np.concatenate([before, row[len(before) :][-num_kept:]]) for row in rows]
            plan = plan_prefill(self.run, rows, num_left, self._spec)
        self._begin_segment(plan)
        if self.is_speculative:
            self._speculative = self._prefill_drafts(plan)
        prompts = plan.prompts._replace(first_index=np.int32(self._segment_start), states=self._processor_states)
        return plan._replace(cache=plan.cache.with_type(self.config.cache_type), prompts=prompts)

    def _begin_segment(self, plan: Prefill) -> None:
        self._spec = plan.spec
        self._segment_length = plan.segment_length
        self._params = self._params._replace(limit=np.int32(plan.segment_length))

    def _prefill_drafts(self, plan: Prefill) -> sampling.SpeculativeState:
        """Start speculative decoding; the draft model, if there is one, reads what the model reads."""
        step = cache = None
        if self._draft is not None:
            step = step_function(self._draft)
            if self.run.model.reads_source:
                cache, _ = prefill_source(self._draft, self.prompts, plan.capacity, plan.extra_slots)
            else:
                config = self._draft.config.decoder
                cache = make_cache(config, len(self.prompts), plan.capacity, plan.extra_slots)
                cache = start_cache(self._draft, cache)
        state = sampling.prefill_speculative(plan.prompts, step, cache)
        if (before := self._speculative) is not None:
            state = state._replace(num_drafted=before.num_drafted, num_accepted=before.num_accepted)
        return state

    def _with_ended_rows(self, state: sampling.DecodeState) -> sampling.DecodeState:
        """The state with the rows done that have ended here: stop strings are found outside the decode loop."""
        has_ended = np.array([bool(finish) for finish in self.finish])
        return state._replace(is_done=state.is_done | has_ended) if has_ended.any() else state

    # Results and stop conditions

    def _collect(self, state: sampling.DecodeState, num: int) -> None:
        """Fetch the new tokens, up to token `num` of the segment, and find the rows that have ended."""
        generated = state.generated
        first = self.num_generated - self._segment_start
        self._processor_states = generated.states
        if (speculative := self._speculative) is not None:
            self.num_drafted, self.num_accepted = jax.device_get((speculative.num_drafted, speculative.num_accepted))
        tokens, log_probs, lengths, top_tokens, top_log_probs = jax.device_get(
            (generated.tokens, generated.log_probs, generated.lengths, generated.top_tokens, generated.top_log_probs)
        )
        for i, finish in enumerate(self.finish):
            if finish:
                continue
            end = min(int(lengths[i]), num)
            top = (top_tokens[i, first:end], top_log_probs[i, first:end])
            self._add_tokens(i, tokens[i, first:end], log_probs[i, first:end], top, end < num)
        self.num_generated = self._segment_start + num
        if self.config.stop:
            self.state = self._with_ended_rows(state)

    def _add_tokens(
        self,
        i: int,
        tokens: np.ndarray,
        log_probs: np.ndarray,
        new_top: tuple[np.ndarray, np.ndarray],
        is_ruled_out: bool,
    ) -> None:
        """Add the newest tokens of row i to its results, and end the row if one of them ended it."""
        self.tokens[i] = np.append(self.tokens[i], tokens)
        self.log_probs[i] = np.append(self.log_probs[i], log_probs)
        self.top[i] = tuple(np.concatenate(pair) for pair in zip(self.top[i], new_top, strict=True))
        if len(tokens) and tokens[-1] in self._spec.eos_ids:
            self.finish[i] = "eos"
        elif is_ruled_out:
            self.finish[i] = "ruled_out"
        elif len(self.tokens[i]) == self.config.max_new_tokens:
            self.finish[i] = "length"
        if self.config.stop:
            self._end_at_stop_string(i, len(tokens))

    def _end_at_stop_string(self, i: int, num_newest: int) -> None:
        """End row i after the first token with which its text contains a stop string, if there is one."""
        num = len(self.tokens[i])
        if self._find_stop_string(i, num) < 0:
            return
        num = next(n for n in range(max(num - num_newest, 0), num + 1) if self._find_stop_string(i, n) >= 0)
        self.stop_index[i] = self._find_stop_string(i, num)
        self.finish[i] = "stop"
        self.tokens[i] = self.tokens[i][:num]
        self.log_probs[i] = self.log_probs[i][:num]
        self.top[i] = tuple(values[:num] for values in self.top[i])

    def _find_stop_string(self, i: int, num_tokens: int) -> int:
        """Index of the first stop string in the text of the first `num_tokens` new tokens; -1: none."""
        text = self._new_text(i, num_tokens)
        return min((index for index in map(text.find, self.config.stop) if index >= 0), default=-1)
