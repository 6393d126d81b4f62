"""The loss, and what else an objective counts, over a whole split."""

from collections.abc import Callable, Iterable
from typing import Any

from train.floor import compare
from train.step import Batch


def measure(eval_step: Callable, params: Any, batches: Iterable[Batch]) -> dict[str, float]:
    """Sums over all batches, divided by the sum of the weights: the same whatever the batches are.

    Args:
      eval_step: (params, batch) -> (loss_sum, weight_sum, counts).
    Returns:
      `loss`, in nats per target, and each count as a share; where the batches have a floor, what `compare` says.
    """
    sums: dict[str, float] = {"loss": 0.0}
    weight_sum = 0.0
    for batch in batches:
        batch_loss, batch_weight, counts = eval_step(params, batch)
        weight_sum += float(batch_weight)
        for name, value in {"loss": batch_loss, **counts}.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    if "floor" in sums:
        return compare(sums, weight_sum)
    return {name: value / weight_sum for name, value in sums.items()}
