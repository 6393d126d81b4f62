"""Continuous batching of a run: more prompts than are generated at once; an ended row makes room for the next one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import sampling
from transformer_jax.inference.adapter_names import of_texts
from transformer_jax.inference.batching import bucket
from transformer_jax.inference.engine import Engine
from transformer_jax.inference.forward import step_function
from transformer_jax.inference.generation_config import GenerationConfig
from transformer_jax.inference.prefill import padded_prompts
from transformer_jax.inference.prefix import num_virtual, prefix_tokens, start_cache
from transformer_jax.nn.kv_cache import KVCache
from transformer_jax.nn.kv_cache_kinds import make_row_cache
from transformer_jax.run import Run

NO_PROMPT = -1  # in a row of the batch that has nothing to do


class ContinuousEngine(Engine):
    """Engine that generates `config.batch_size` of its rows at once, the longest prompts first.

    Prompts are read a quarter of the batch at a time, once as many rows have ended: a call of the model for each prompt
    would be slower, and waiting for more rows leaves them idle.
    """

    def __init__(
        self,
        run: Run,
        prompts: list[np.ndarray],
        config: GenerationConfig,
        params: sampling.SamplingParams,
        num_top: int = 0,
    ):
        super().__init__(run, prompts, config, params, num_top)
        lengths = [len(prompt) for prompt in prompts]
        context = run.decoder_context + len(prefix_tokens(run))
        self._capacity = bucket(max(lengths) + config.max_new_tokens, context)
        self._spec = dataclasses.replace(
            self._spec, max_new_tokens=bucket(config.max_new_tokens, context), buffer_length=self._capacity + 1
        )
        self._waiting = sorted(range(len(prompts)), key=lambda i: lengths[i])  # the next one last
        self._index = np.full(config.batch_size, NO_PROMPT)  # of the prompt in each row of the batch
        self._num_read = max(1, config.batch_size // 4)  # prompts that are read together
        self._start = start_cache(run, self._empty_cache(self._num_read)) if run.prefix else None

    def advance(self, num_tokens: int) -> None:
        """Read the prompts that there is room for, and decode until the next ones can be read.

        At most `num_tokens` tokens are generated for each row.
        """
        state = self._read_prompts()
        batch_size = len(self._index)
        num_idle = int(np.sum(self._index == NO_PROMPT))
        num_ended = min(num_idle + self._num_read, batch_size) if self._waiting else batch_size
        params = self._params_of(self._index)
        step = step_function(of_texts(self.run, self._index))  # a row without a prompt has the last one's adapter
        self.state = sampling.decode_until_rows_end(
            step, state, params, self._spec, np.int32(num_ended), np.int32(num_tokens)
        )
        self._collect_rows(self.state)

    def _read_prompts(self) -> sampling.DecodeState:
        """Fill the rows without a prompt, a fixed number at a time, and as many as there are prompts for."""
        state = self.state
        if state is None:
            state = self._empty_state()
        idle = np.flatnonzero(self._index == NO_PROMPT)
        while len(idle) and self._waiting:
            rows = idle[: self._num_read]
            idle = idle[self._num_read :]
            chosen = [self._waiting.pop() for _ in rows[: len(self._waiting)]]
            rows = rows[: len(chosen)]
            self._index[rows] = chosen
            padding = [0] * (self._num_read - len(rows))  # the first prompt again, so that one program serves all
            rows = np.append(rows, rows[padding])
            indices = self._index[rows]
            texts = [self.prompts[i] for i in indices]
            prompts = padded_prompts(self.run, texts, self._capacity)
            step = step_function(of_texts(self.run, indices))
            params = self._params_of(indices)
            state = sampling.read_into_rows(step, state, rows, prompts, params, self._spec, self._start)
        return state

    def _params_of(self, indices: np.ndarray) -> sampling.SamplingParams:
        """Numbers of sampling for the prompts with these indices."""
        return self._params._replace(keys=self._params.keys[indices], limit=np.int32(self.config.max_new_tokens))

    def _empty_cache(self, num_rows: int) -> KVCache:
        capacity = self._capacity + num_virtual(self.run)
        return make_row_cache(self.run.config.decoder, num_rows, capacity).with_type(self.config.cache_type)

    def _empty_state(self) -> sampling.DecodeState:
        """State in which all rows of the batch have ended, before the first prompts."""
        B = len(self._index)
        cache = self._empty_cache(B)
        no_text = jnp.zeros((B, self._spec.buffer_length), jnp.int32)
        params = self._params_of(np.zeros(B, int))
        state = sampling.initial_state(cache, no_text, jnp.zeros(B, jnp.int32), params, self._spec)
        return state._replace(is_done=jnp.ones(B, bool))

    def _collect_rows(self, state: sampling.DecodeState) -> None:
        """Fetch the new tokens of each row of the batch, and free the rows whose text has ended."""
        generated = state.generated
        is_done, *values = jax.device_get(
            (
                state.is_done,
                generated.lengths,
                generated.tokens,
                generated.log_probs,
                generated.top_tokens,
                generated.top_log_probs,
            )
        )
        lengths, *arrays = values
        for row, i in enumerate(self._index.tolist()):
            if i == NO_PROMPT:
                continue
            tokens, log_probs, *top = (array[row, len(self.tokens[i]) : lengths[row]] for array in arrays)
            is_ruled_out = bool(is_done[row]) and lengths[row] < self.config.max_new_tokens
            self._add_tokens(i, tokens, log_probs, (top[0], top[1]), is_ruled_out)
            if self.finish[i]:
                self._index[row] = NO_PROMPT
        self.state = state._replace(is_done=jnp.asarray(self._index == NO_PROMPT))
