"""Continuous batching: a row that has ended makes room for the next prompt, while the others continue.

Yu et al. 2022 (Orca), section 3.2, "iteration-level scheduling": no row waits for the longest text of its batch.
"""

import jax
import jax.numpy as jnp

from transformer_jax.nn.kv_cache import KVCache
from transformer_jax.sampling.decode import DecodeState, decode_step, prefill
from transformer_jax.sampling.spec import DecodeSpec, Integer, Prompts, SamplingParams, Step


@jax.jit
def read_into_rows(
    step: Step,
    state: DecodeState,
    rows: jax.Array,
    prompts: Prompts,
    params: SamplingParams,
    spec: DecodeSpec,
    start: KVCache | None = None,
) -> DecodeState:
    """Read prompts into rows that have ended, and choose their first tokens; the other rows stay as they are.

    Args:
      state: with a cache of `make_row_cache` or `make_rolling_cache`.
      rows: [R] int, a row of the state for each prompt.
      params: keys of these prompts [R], and their processors.
      start: cache of R rows like those of the state, with what is before every prompt; None: nothing.
    """
    cache = state.cache.clear(rows).reorder(rows) if start is None else start
    new = end_at_limit(prefill(step, cache, prompts, params, spec), params)

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[rows].set(new)

    # Fields of a DecodeState before its cache.
    is_done, token_buffer, prompt_lengths, first_index, generated = jax.tree.map(put, state[:-1], new[:-1])
    cache = state.cache.insert(rows, new.cache)
    return DecodeState(is_done, token_buffer, prompt_lengths, first_index, generated, cache)


@jax.jit
def decode_until_rows_end(
    step: Step, state: DecodeState, params: SamplingParams, spec: DecodeSpec, num_ended: Integer, num_steps: Integer
) -> DecodeState:
    """Decode loop until `num_ended` rows in all have ended, or for `num_steps` steps.

    A row also ends with its token number `params.limit`, since rows begin at different times.
    """

    def continues(carry):
        i, state = carry
        return (jnp.sum(state.is_done) < num_ended) & (i < num_steps)

    def one_step(carry):
        i, state = carry
        return i + 1, end_at_limit(decode_step(step, state, params, spec), params)

    return jax.lax.while_loop(continues, one_step, (0, state))[1]


def end_at_limit(state: DecodeState, params: SamplingParams) -> DecodeState:
    """End the rows that have all their new tokens, `params.limit` of them."""
    assert params.limit is not None
    return state._replace(is_done=state.is_done | (state.generated.lengths >= params.limit))
