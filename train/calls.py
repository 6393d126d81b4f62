"""Calls of the compiled training step: how many steps share one, and their batches, stacked."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from transformer_jax.models import Params

from . import flops
from .config import Config
from .data.batches import Batch
from .tasks.base import Task

# Steps share a call up to this many operations in it: about a second on a laptop; on a GPU or a TPU some 50 ms at
# 400 TFLOP/s, where a call costs one or two. Only the first was measured.
SHORT_STEP_FLOPS = {"cpu": 5e10, "gpu": 2e13, "tpu": 2e13}


class Call(NamedTuple):
    """Steps that one call of the compiled program takes, and their batches."""

    num_steps: int  # an argument of the compiled program, not a part of it
    batches: Batch  # stacked as [steps_per_call, B, ...]: entries beyond num_steps repeat the last and are never read
    num_targets: int


def choose_steps_per_call(config: Config, task: Task, params: Params) -> int:
    """Choose the number of steps in a call of the compiled program: several if steps are short."""
    if not task.has_one_shape:
        return 1
    step_flops = flops.flops_per_token(params, task.model.config) * task.tokens_per_step
    return config.train.steps_per_call or int(np.clip(SHORT_STEP_FLOPS[jax.default_backend()] // step_flops, 1, 10))


def read_calls(
    batches: Iterator[Batch], num_targets: Callable[[Batch], int], step: int, config: Config, steps_per_call: int
) -> Iterator[Call]:
    """Read the calls from `step` to the last step; none goes beyond a log line, an evaluation or a checkpoint.

    Args:
      batches: the batches of single steps, from `step` on, in order.
      num_targets: number of targets of a batch.
    """
    num_steps = 1  # the very first step runs alone, to time its compilation
    while step < config.train.num_steps:
        taken = [next(batches) for _ in range(num_steps)]
        stacked = jax.tree.map(lambda *x: np.stack([*x, *x[-1:] * (steps_per_call - len(x))]), *taken)
        yield Call(num_steps, stacked, sum(map(num_targets, taken)))
        step += num_steps
        num_steps = min(steps_per_call, _steps_to_next_event(step, config))


def _steps_to_next_event(step: int, config: Config) -> int:
    every = (config.train.log_every, config.train.eval_every, config.checkpoint.save_every)
    return min(*(e - step % e for e in every), config.train.num_steps - step)
