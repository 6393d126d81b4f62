"""Data parallelism: one training step over all devices, by `jit` over a mesh or by `pmap`.

Both run the same `train_step`. jit is JAX's current way: arrays carry their sharding, and the compiler adds the
communication. pmap is the older equivalent: a copy of the state for each device, and explicit sums over the devices.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from transformer_jax.errors import UserError, choose
from transformer_jax.models import Params

from .state import TrainState
from .step import Batch, train_steps

AXIS = "data"


class Jit:
    """Data parallelism by jit: one program over a mesh of all devices, batch rows sharded, the state replicated."""

    def __init__(self, step: Callable, evaluate: Callable):
        mesh = jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))
        self.sharding = NamedSharding(mesh, PartitionSpec())
        self._rows = NamedSharding(mesh, PartitionSpec(AXIS))
        self._rows_of_steps = NamedSharding(mesh, PartitionSpec(None, AXIS))
        steps = functools.partial(train_steps, step=step)
        self._train = jax.jit(steps, donate_argnums=0, out_shardings=self.sharding)
        self._evaluate = jax.jit(evaluate, out_shardings=self.sharding)

    def put(self, state: TrainState) -> TrainState:
        """Put the state on the devices, as the argument of `train`."""
        return jax.device_put(state, self.sharding)

    def get(self, tree: Any) -> Any:
        """Return the state, or a part of it, as one copy to save or read."""
        return tree

    def train(self, state: TrainState, batches: Batch, num_steps: int) -> TrainState:
        """Run `num_steps` training steps over batches [n, B, ...]. The buffers of `state` are donated."""
        return self._train(state, jax.device_put(batches, self._rows_of_steps), np.int32(num_steps))

    def evaluate(self, params: Params, batch: Batch) -> tuple[jax.Array, jax.Array, dict]:
        """Return the sums of `eval_step` over a batch [B, ...]."""
        return self._evaluate(params, jax.device_put(batch, self._rows))


class Pmap:
    """Data parallelism by pmap: a program for each device, with its own copy of the state and its share of the rows."""

    def __init__(self, step: Callable, evaluate: Callable):
        self.sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        steps = functools.partial(train_steps, step=functools.partial(step, axis_name=AXIS))
        self._train = jax.pmap(steps, AXIS, in_axes=(0, 0, None), donate_argnums=0)
        self._evaluate = jax.pmap(functools.partial(evaluate, axis_name=AXIS), AXIS)

    def put(self, state: TrainState) -> TrainState:
        """Copy the state for each device: a leading axis of devices on every leaf."""
        return jax.tree.map(lambda x: np.broadcast_to(x, (jax.local_device_count(), *np.shape(x))), state)

    def get(self, tree: Any) -> Any:
        """Return the first device's copy; all are equal."""
        return jax.tree.map(lambda x: x.addressable_shards[0].data[0] if isinstance(x, jax.Array) else x[0], tree)

    def train(self, state: TrainState, batches: Batch, num_steps: int) -> TrainState:
        """Run `num_steps` training steps over batches [n, B, ...]. The buffers of `state` are donated."""
        shares = jax.tree.map(lambda x: _split_rows(x, axis=1), batches)
        return self._train(state, shares, np.int32(num_steps))

    def evaluate(self, params: Params, batch: Batch) -> tuple[jax.Array, jax.Array, dict]:
        """Return the sums of `eval_step` over a batch [B, ...]."""
        return self.get(self._evaluate(params, jax.tree.map(lambda x: _split_rows(x, axis=0), batch)))


def _split_rows(x: np.ndarray, axis: int) -> np.ndarray:
    """Split rows: [..., B, ...] -> [devices, ..., B / devices, ...]. Device d gets the d-th block, as under jit."""
    return np.stack(np.split(x, jax.local_device_count(), axis))


PARALLEL: dict[str, type[Jit] | type[Pmap]] = {"jit": Jit, "pmap": Pmap}


def make_parallel(name: str, step: Callable, evaluate: Callable, rows: int) -> Jit | Pmap:
    """Make the data parallelism that `train.parallel` names.

    Args:
      step, evaluate: `train_step` and `eval_step` with all arguments bound except state and batch.
      rows: rows of a micro-batch; must be divisible by the number of devices.
    Raises:
      UserError: unknown name, or the rows do not divide.
    """
    kind = choose(PARALLEL, name, "train.parallel")
    if rows % jax.device_count():
        raise UserError(
            f"train.batch_size / train.accumulation = {rows}: must be divisible by the {jax.device_count()} devices. "
            "Take a multiple."
        )
    return kind(step, evaluate)
