"""One training step and one evaluation step, as pure functions. `parallel.py` compiles them."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from .state import LossAccumulator, TrainState

Batch = dict[str, jax.Array]


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    loss_fn: Callable,
    optimizer: optax.GradientTransformation,
    seed: int,
    accumulation: int,
    max_consecutive_skips: int,
    log_every: int,
    ema_decay: float = 0.0,
    axis_name: str | None = None,
) -> TrainState:
    """Gradient of the mean loss over the batch, and the optimizer's update.

    The batch is cut into `accumulation` micro-batches; sums of losses, weights and gradients are added up,
    over them and (under pmap) over the devices of `axis_name`, and only then divided. A step whose loss or
    gradient is not finite changes no parameter and is counted; after `max_consecutive_skips` of them in a row no
    later step updates any more, so that the caller may look at the counter when it suits.

    Args:
      batch: arrays [B, ...]; `accumulation` divides B.
      log_every: the window of summed losses starts anew after every step that this divides.
      ema_decay: of the average of the parameters, where the state has one; smaller in the first steps, so that
        the initial values are soon forgotten: at most (1 + step) / (10 + step).
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)  # dropout: a function of seed and step alone
    if axis_name:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))

    def micro_batch_loss(params, micro_batch, key):
        apply = functools.partial(model.apply, {"params": params}, rngs={"dropout": key})
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
        # Micro-batch i takes every accumulation-th row: then each one holds rows of every device.
        micro_batches = jax.tree.map(lambda x: x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1), batch)
        sums, _ = jax.lax.scan(add_micro_batch, sums, (jnp.arange(accumulation), micro_batches))
    if axis_name:
        sums = jax.lax.psum(sums, axis_name)
    loss_sum, weight_sum, grads = sums
    grads = jax.tree.map(lambda g: g / jnp.maximum(weight_sum, 1.0), grads)  # a batch of padding only: no division by 0
    grad_norm = optax.tree.norm(grads)

    is_skipped = ~(jnp.isfinite(loss_sum) & jnp.isfinite(grad_norm)) | (
        state.consecutive_skips >= max_consecutive_skips
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    keep_if_skipped = functools.partial(jax.tree.map, lambda old, new: jnp.where(is_skipped, old, new))
    window = jax.tree.map(lambda x: jnp.where(state.step % log_every == 0, 0.0, x), state.window)
    window = keep_if_skipped(window, LossAccumulator(window.loss_sum + loss_sum, window.weight_sum + weight_sum))
    params = keep_if_skipped(state.params, params)
    decay = jnp.where(is_skipped, 1.0, jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step)))
    return TrainState(
        step=state.step + 1,
        params=params,
        opt_state=keep_if_skipped(state.opt_state, opt_state),
        consecutive_skips=jnp.where(is_skipped, state.consecutive_skips + 1, 0),
        skipped_steps=state.skipped_steps + is_skipped,
        grad_norm=grad_norm,
        window=window,
        # Of no parameters (), there is nothing to average.
        average=state.average and jax.tree.map(lambda a, p: decay * a + (1.0 - decay) * p, state.average, params),
    )


def train_steps(state: TrainState, batches: Batch, num_steps: jax.Array, *, step: Callable) -> TrainState:
    """The first `num_steps` of the stacked `batches` [n, B, ...], one step each.

    One call for several short steps saves the cost of calling; `num_steps` is not part of the compiled
    program, so one program serves every boundary.
    """
    return jax.lax.fori_loop(0, num_steps, lambda i, s: step(s, jax.tree.map(lambda x: x[i], batches)), state)


def eval_step(
    params, batch: Batch, *, model: nn.Module, loss_fn: Callable, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Sums of the losses, of the weights and of what else the loss_fn counts in one batch, without dropout."""
    sums = loss_fn(functools.partial(model.apply, {"params": params}), batch)
    return jax.lax.psum(sums, axis_name) if axis_name else sums
