"""Evaluation: loss and metrics of a whole split."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from transformer_jax.models import Params

from .entropy_floor import compare
from .signals import StopSignals
from .step import Batch


class BrokenOff(Exception):
    """End of an evaluation that was broken off between two batches."""


def breaking_off(eval_step: Callable, stop: StopSignals) -> Callable:
    """Wrap an evaluation step so that it raises BrokenOff once a signal has arrived."""

    def step(params: Params, batch: Batch) -> tuple:
        if stop.signum:
            raise BrokenOff
        return eval_step(params, batch)

    return step


def evaluate(eval_step: Callable, params: Params, batches: Iterable[Batch]) -> dict[str, float]:
    """Evaluate a split: sums over all batches, divided at the end, so the result does not depend on the batch size.

    Args:
      eval_step: (params, batch) -> (loss_sum, weight_sum, counts).
    Returns:
      `loss`, in nats per target, and each count as a ratio: divided by the sum of the weights or, for a pair
      (numerator, denominator), the mean of numerator / denominator over their elements. If the batches have an
      entropy floor: the result of `entropy_floor.compare`.
    """
    sums: dict[str, Any] = {}
    results = (eval_step(params, batch) for batch in batches)
    # In pairs, so that the device has begun with a batch before the sums of the one before are fetched.
    for (loss_sum, weight_sum, counts), _ in itertools.pairwise(itertools.chain(results, (None,))):
        new = jax.tree.map(lambda x: np.asarray(x, np.float64), {"loss": loss_sum, "weight": weight_sum, **counts})
        sums = jax.tree.map(np.add, sums, new) if sums else new
    weight_sum = sums.pop("weight")
    if "floor" in sums:
        return compare({name: float(value) for name, value in sums.items()}, float(weight_sum))
    return {name: _ratio(value, weight_sum) for name, value in sums.items()}


def _ratio(value: Any, weight_sum: Any) -> float:
    if isinstance(value, tuple):
        numerator, denominator = value
        return float(np.mean(numerator / np.maximum(denominator, 1.0)))
    return float(value / weight_sum)
