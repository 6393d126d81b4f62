"""Training step and evaluation step as pure functions: gradient accumulation, skipped steps, moving average.

`parallel.py` compiles them for one device or many.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from transformer_jax.models import Model, Params, merge_params
from transformer_jax.models.prefix import all_variables

from .state import LossAccumulator, TrainState

Batch = Mapping[str, jax.Array | np.ndarray]


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Model,
    loss_fn: Callable,
    optimizer: optax.GradientTransformation,
    seed: int,
    accumulation: int,
    max_consecutive_skips: int,
    log_every: int,
    ema_decay: float = 0.0,
    adapter_dropout: float = 0.0,
    axis_name: str | None = None,
) -> TrainState:
    """Training step: gradient of the mean loss over the batch, then the optimizer's update.

    Only `state.params` is differentiated and updated; `state.frozen` is read.

    The batch is split into `accumulation` micro-batches. Sums of losses, weights and gradients are added over the
    micro-batches and (under pmap) over the devices of `axis_name`, and only then divided. A non-finite step (its loss
    or gradient is NaN or infinite) is skipped: it is counted, and changes no parameter. After
    `max_consecutive_skips` skipped steps in a row every later step is skipped, too, so the caller may check the
    counter as rarely as it likes.

    Args:
      batch: arrays [B, ...]; `accumulation` must divide B.
      loss_fn: one of losses.py: (apply, batch, deterministic) -> (loss_sum, weight_sum, counts).
      log_every: the loss accumulator restarts at 0 after every step that is a multiple of this.
      ema_decay: decay of the moving average of the parameters, if the state has one. Smaller in the first steps, at
        most (1 + step) / (10 + step), so that the initial values are soon forgotten.
      adapter_dropout: share of the inputs of LoRA's first matrices that are dropped.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)  # dropout: a function of seed and step alone
    if axis_name:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))

    def micro_batch_loss(params, micro_batch, key):
        variables = all_variables(model, merge_params(params, state.frozen), adapter_dropout)
        apply = functools.partial(model.apply, variables, rngs={"dropout": key})
        loss_sum, weight_sum, _ = loss_fn(apply, micro_batch, deterministic=False)
        return loss_sum, weight_sum

    def add_micro_batch(sums, i_and_micro_batch):
        i, micro_batch = i_and_micro_batch
        (loss_sum, weight_sum), grads = jax.value_and_grad(micro_batch_loss, has_aux=True)(
            state.params, micro_batch, jax.random.fold_in(key, i)
        )
        return jax.tree.map(jnp.add, sums, (loss_sum, weight_sum, grads)), None

    sums = (jnp.float32(0), jnp.float32(0), jax.tree.map(jnp.zeros_like, state.params))
    if accumulation == 1:
        sums, _ = add_micro_batch(sums, (0, batch))
    else:
        # Micro-batch i takes every accumulation-th row, so each micro-batch has rows of every device.
        micro_batches = jax.tree.map(lambda x: x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1), batch)
        sums, _ = jax.lax.scan(add_micro_batch, sums, (jnp.arange(accumulation), micro_batches))
    if axis_name:
        sums = jax.lax.psum(sums, axis_name)
    loss_sum, weight_sum, grads = sums
    grads = jax.tree.map(lambda g: g / jnp.maximum(weight_sum, 1.0), grads)  # a batch of padding only: no division by 0
    grad_norm = optax.tree.norm(grads)

    is_finite = jnp.isfinite(loss_sum) & jnp.isfinite(grad_norm)
    is_skipped = ~is_finite | (state.consecutive_skips >= max_consecutive_skips)
    keep_if_skipped = functools.partial(jax.tree.map, lambda old, new: jnp.where(is_skipped, old, new))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    sums_so_far = jax.tree.map(lambda x: jnp.where(state.step % log_every == 0, 0.0, x), state.accumulator)
    accumulator = LossAccumulator(sums_so_far.loss_sum + loss_sum, sums_so_far.weight_sum + weight_sum)
    accumulator = keep_if_skipped(sums_so_far, accumulator)
    params = keep_if_skipped(state.params, params)
    decay = jnp.where(is_skipped, 1.0, jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step)))
    return TrainState(
        step=state.step + 1,
        params=params,
        frozen=state.frozen,
        opt_state=keep_if_skipped(state.opt_state, opt_state),
        consecutive_skips=jnp.where(is_skipped, state.consecutive_skips + 1, 0),
        skipped_steps=state.skipped_steps + is_skipped,
        grad_norm=grad_norm,
        accumulator=accumulator,
        ema_params=state.ema_params
        and jax.tree.map(lambda average, new: decay * average + (1.0 - decay) * new, state.ema_params, params),
    )


def train_steps(state: TrainState, batches: Batch, num_steps: jax.Array, *, step: Callable) -> TrainState:
    """Several training steps in one call: the first `num_steps` of the stacked `batches` [n, B, ...].

    One call for several short steps saves the overhead of calls. `num_steps` is an argument of the compiled program,
    so one program serves every number of steps up to the next log line, evaluation or checkpoint.
    """
    return jax.lax.fori_loop(0, num_steps, lambda i, s: step(s, jax.tree.map(lambda x: x[i], batches)), state)


def eval_step(
    params: Params, batch: Batch, *, model: Model, loss_fn: Callable, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Evaluation step without dropout: sums of losses, weights and the loss function's counts over one batch."""
    sums = loss_fn(functools.partial(model.apply, all_variables(model, params)), batch)
    return jax.lax.psum(sums, axis_name) if axis_name else sums
