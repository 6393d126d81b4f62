"""Early stopping: the best evaluation so far, by the validation metric of `train.best_by`."""

import dataclasses
import math
from collections.abc import Mapping

from transformer_jax.checkpoints.meta import BestScore
from transformer_jax.errors import UserError

IS_LARGER_BETTER = {
    "loss": False,
    "perplexity": False,
    "bits_per_byte": False,
    "gap": False,  # of the loss above the entropy floor
    "mean_absolute_error": False,
    "accuracy": True,
    "macro_f1": True,
    "micro_f1": True,
    "exact_match": True,
    "entity_f1": True,
}


@dataclasses.dataclass(frozen=True)
class BestTracker(BestScore):
    """Tracker of the best evaluation; its metric is a key of IS_LARGER_BETTER."""

    def score_of(self, metrics: Mapping[str, float]) -> float:
        """Score of an evaluation; larger is better. Raises UserError if it has no such metric."""
        if self.metric not in metrics or self.metric not in IS_LARGER_BETTER:
            raise UserError(
                f"train.best_by={self.metric!r}: must be a metric of this task. "
                f"Take one of: {', '.join(name for name in metrics if name in IS_LARGER_BETTER)}."
            )
        value = metrics[self.metric]
        return value if IS_LARGER_BETTER[self.metric] else -value

    def after(self, metrics: Mapping[str, float], step: int) -> "BestTracker":
        """Tracker after one more evaluation. Of two equal scores the earlier one is the best; NaN never is."""
        score = self.score_of(metrics)
        is_better = not math.isnan(score) and (self.score is None or score > self.score)
        return dataclasses.replace(self, score=score, step=step) if is_better else self

    def is_stale(self, step: int, patience: int) -> bool:
        """Return whether the best evaluation is at least `patience` steps old; a patience of 0 is never over."""
        return 0 < patience <= step - self.step

    def __str__(self) -> str:
        if self.score is None:
            return f"no {self.metric} at all"
        value = self.score if IS_LARGER_BETTER[self.metric] else -self.score
        return f"{self.metric} {value:.4f} at step {self.step}"


def best_of(saved: BestScore | None, metric: str) -> BestTracker:
    """Tracker that continues from the best score of a checkpoint, or a new one if there is no checkpoint.

    Raises:
      UserError: the checkpoints have scores by another metric, so that "best" would compare two metrics.
    """
    if saved is None:
        return BestTracker(metric)
    if saved.metric != metric:
        raise UserError(
            f"train.best_by={metric!r}: the checkpoints in this workdir have scores by {saved.metric!r}, and two "
            f"metrics cannot be compared. Take train.best_by={saved.metric!r}, or another workdir."
        )
    return BestTracker(saved.metric, saved.score, saved.step)
