"""Training state: parameters, optimizer state, counters, and its two items in a checkpoint."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import optax

from transformer_jax.models import Params, merge_params


@flax.struct.dataclass
class LossAccumulator:
    """Sums of losses and weights since the last log line."""

    loss_sum: jax.Array
    weight_sum: jax.Array


@flax.struct.dataclass
class TrainState:
    """Training state: everything that a step changes. Random keys are functions of the step and are not stored."""

    step: jax.Array  # int32: optimizer steps so far, skipped ones included
    params: Params  # those that are trained
    frozen: Params  # all others: no gradient, no optimizer state; {} if all are trained
    opt_state: optax.OptState
    consecutive_skips: jax.Array  # int32: skipped steps in a row, up to the last step
    skipped_steps: jax.Array  # int32: skipped steps in total
    grad_norm: jax.Array  # float32: of the last step, before clipping
    accumulator: LossAccumulator
    ema_params: Params  # exponential moving average of params; () if none is kept

    @property
    def all_params(self) -> Params:
        """The parameters of the model, trained and frozen."""
        return merge_params(self.params, self.frozen)


def create_state(
    params: Params, optimizer: optax.GradientTransformation, has_ema: bool = False, frozen: Params | None = None
) -> TrainState:
    """Create the training state before the first step, from the parameters to train and those that are frozen."""
    return TrainState(
        step=jnp.int32(0),
        params=params,
        frozen=frozen or {},
        opt_state=optimizer.init(params),
        consecutive_skips=jnp.int32(0),
        skipped_steps=jnp.int32(0),
        grad_norm=jnp.float32(0),
        accumulator=LossAccumulator(jnp.float32(0), jnp.float32(0)),
        ema_params=jax.tree.map(jnp.copy, params) if has_ema else (),
    )


def eval_params(state: TrainState) -> Params:
    """Return the parameters to evaluate: the moving average if there is one, and the frozen ones."""
    return merge_params(state.ema_params or state.params, state.frozen)


def to_checkpoint(state: TrainState) -> tuple[Params, dict]:
    """Split the state into two items of a checkpoint: the trained parameters to evaluate, and what training needs.

    Frozen parameters are in neither: they are an item of the run, and not of a step.
    """
    saved_apart = "ema_params" if state.ema_params else "params"
    apart = (saved_apart, "frozen")
    rest = {f.name: getattr(state, f.name) for f in dataclasses.fields(state) if f.name not in apart}
    return getattr(state, saved_apart), rest


def from_checkpoint(params: Params, rest: dict, frozen: Params) -> TrainState:
    """Rebuild the state from the two items of a checkpoint and the frozen parameters; inverse of `to_checkpoint`."""
    saved_apart = "ema_params" if "params" in rest else "params"
    return TrainState(**{saved_apart: params}, **rest, frozen=frozen)
