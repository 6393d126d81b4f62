"""Which evaluation was the best so far, by the number that the task goes by."""

import dataclasses
import math

from transformer_jax.errors import UserError

SMALLER_IS_BETTER = ("loss",)


@dataclasses.dataclass(frozen=True)
class BestTracker:
    """The best evaluation so far, if there was one."""

    metric: str  # one of the numbers that an evaluation has
    score: float | None = None  # larger is better: a loss with its sign turned; None: there was none
    step: int = 0

    def score_of(self, measured: dict[str, float]) -> float:
        """What an evaluation is worth. Raises UserError where it has no such number."""
        if self.metric not in measured:
            names = ", ".join(name for name, value in measured.items() if isinstance(value, float))
            raise UserError(f"train.best_by={self.metric!r}: must be a number that this task measures: {names}.")
        value = measured[self.metric]
        return -value if self.metric in SMALLER_IS_BETTER else value

    def after(self, measured: dict[str, float], step: int) -> "BestTracker":
        """With one more evaluation. Of equals the earlier one is the best; NaN never is."""
        score = self.score_of(measured)
        is_better = not math.isnan(score) and (self.score is None or score > self.score)
        return dataclasses.replace(self, score=score, step=step) if is_better else self

    def is_stale(self, step: int, patience: int) -> bool:
        """Whether it is `patience` steps old, or more; 0: never."""
        return 0 < patience <= step - self.step

    def __str__(self) -> str:
        if self.score is None:
            return f"no {self.metric} at all"
        value = -self.score if self.metric in SMALLER_IS_BETTER else self.score
        return f"{self.metric} {value:.4f} at step {self.step}"


def best_of(meta: dict | None, metric: str) -> BestTracker:
    """The best that a checkpoint knows of, where it went by the same number; else none."""
    known = BestTracker(**meta["best"]) if meta else BestTracker(metric)
    return known if known.metric == metric else BestTracker(metric)
