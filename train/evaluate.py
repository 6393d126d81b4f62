"""The loss over a whole validation split."""

from collections.abc import Callable, Iterable
from typing import Any

from train.step import Batch


def evaluate(eval_step: Callable, params: Any, batches: Iterable[Batch]) -> float:
    """Nats per token: the sum of all losses over the sum of all weights, whatever the batches are.

    Args:
      eval_step: (params, batch) -> (loss_sum, weight_sum).
    """
    loss_sum = weight_sum = 0.0
    for batch in batches:
        batch_loss, batch_weight = eval_step(params, batch)
        loss_sum += float(batch_loss)
        weight_sum += float(batch_weight)
    return loss_sum / weight_sum
