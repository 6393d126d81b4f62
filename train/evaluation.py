"""The loss, and what else an loss_fn counts, over a whole split."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from .entropy_floor import compare
from .step import Batch


def evaluate(eval_step: Callable, params: Any, batches: Iterable[Batch]) -> dict[str, float]:
    """Sums over all batches, divided by the sum of the weights: the same whatever the batches are.

    Args:
      eval_step: (params, batch) -> (loss_sum, weight_sum, counts).
    Returns:
      `loss`, in nats per target, and each count as a share: of the weights or, of a pair (part, whole), the mean of
      part / whole over their elements; where the batches have a floor, what `compare` says.
    """
    sums: dict[str, Any] = {}
    for batch in batches:
        loss_sum, weight_sum, counts = eval_step(params, batch)
        new = jax.tree.map(lambda x: np.asarray(x, np.float64), {"loss": loss_sum, "weight": weight_sum, **counts})
        sums = jax.tree.map(np.add, sums, new) if sums else new
    weight_sum = sums.pop("weight")
    if "floor" in sums:
        return compare({name: float(value) for name, value in sums.items()}, float(weight_sum))
    return {name: _share(value, weight_sum) for name, value in sums.items()}


def _share(value: Any, weight_sum: Any) -> float:
    part, whole = value if isinstance(value, tuple) else (value, weight_sum)
    return float(np.mean(part / np.maximum(whole, 1.0))) if isinstance(value, tuple) else float(part / whole)
