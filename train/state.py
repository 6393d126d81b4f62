"""The training state: everything that a step changes."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class LossAccumulator:
    """What is summed up between two lines of the log."""

    loss_sum: jax.Array
    weight_sum: jax.Array


@flax.struct.dataclass
class TrainState:
    """Parameters, optimizer state and counters. Random keys are functions of the step and are not stored."""

    step: jax.Array  # int32: optimizer steps tried
    params: Any
    opt_state: optax.OptState
    consecutive_skips: jax.Array  # int32: last steps in a row whose loss or gradient was not finite
    skipped_steps: jax.Array  # int32: such steps in all
    grad_norm: jax.Array  # float32: of the last step, before clipping
    window: LossAccumulator
    average: Any  # exponential moving average of params; () where none is kept


def create_state(params: Any, optimizer: optax.GradientTransformation, has_average: bool = False) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=optimizer.init(params),
        consecutive_skips=jnp.int32(0),
        skipped_steps=jnp.int32(0),
        grad_norm=jnp.float32(0),
        window=LossAccumulator(jnp.float32(0), jnp.float32(0)),
        average=jax.tree.map(jnp.copy, params) if has_average else (),
    )


def used_params(state: TrainState) -> Any:
    """The parameters that are measured, saved as the model and used later: the average where there is one."""
    return state.average or state.params


def split(state: TrainState) -> tuple[Any, dict]:
    """The parameters to use, and the rest: the two items of a checkpoint."""
    left_out = "average" if state.average else "params"
    rest = {f.name: getattr(state, f.name) for f in dataclasses.fields(state) if f.name != left_out}
    return used_params(state), rest


def join(used: Any, rest: dict) -> TrainState:
    """The way back from `split`."""
    return TrainState(**{"average" if "params" in rest else "params": used}, **rest)
