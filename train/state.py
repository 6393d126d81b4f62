"""The training state: everything that a step changes."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class Window:
    """What is summed up between two lines of the log."""

    loss_sum: jax.Array
    weight_sum: jax.Array


@flax.struct.dataclass
class TrainState:
    """Parameters, optimizer state and counters. Random keys are functions of the step and are not stored."""

    step: jax.Array  # int32: optimizer steps tried
    params: Any
    opt_state: optax.OptState
    bad_in_row: jax.Array  # int32: last steps in a row whose loss or gradient was not finite
    num_bad: jax.Array  # int32: such steps in all
    grad_norm: jax.Array  # float32: of the last step, before clipping
    window: Window


def create_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.int32(0), params=params, opt_state=optimizer.init(params), bad_in_row=jnp.int32(0),
        num_bad=jnp.int32(0), grad_norm=jnp.float32(0), window=Window(jnp.float32(0), jnp.float32(0)),
    )  # fmt: skip
