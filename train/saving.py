"""Saving of a training run: no checkpoint has NaN or infinity, and a run that diverges names the one to go back to."""

import contextlib
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from transformer_jax.checkpoints.meta import CheckpointMeta, TrainingMeta
from transformer_jax.checkpoints.store import Checkpoints
from transformer_jax.errors import RunError
from transformer_jax.models import Params
from transformer_jax.models.quantization import dtype_key, int8_paths

from .adapters import adapter_spec
from .config import Config
from .early_stopping import BestTracker
from .metrics import MetricsLog
from .state import TrainState, to_checkpoint
from .tasks.base import Task


class Saver:
    """Saver of the state of a run.

    Args:
      step: of the checkpoint that the run resumed from; 0: none.
    """

    def __init__(self, checkpoints: Checkpoints, log: MetricsLog, config: Config, task: Task, step: int):
        self.step = step  # of the newest checkpoint
        self.is_due = False
        self._checkpoints = checkpoints
        self._log = log
        self._config = config
        self._task = task
        self._adapter = adapter_spec(task.model, config.adapter)

    def save(self, state: TrainState, step: int, score: float | None, best: BestTracker) -> None:
        """Start to save the state after `step`, whose evaluation had this `score`.

        The checkpoint before it is known to be good, since a step after it was not skipped; so older ones are pruned.

        Raises:
          RunError: a number is NaN or infinite, or the checkpoint cannot be written.
        """
        if not _are_finite((state.params, state.ema_params, state.opt_state)):
            reason = (
                f"stopped at step {step}: a parameter or the optimizer's state is NaN or infinite, and is not saved"
            )
            raise self.diverged(reason)
        if step > self.step:
            self._checkpoints.prune(self.step)
        self._log.sync()
        params, rest = to_checkpoint(state)
        self._checkpoints.save(params, self._meta(step, score, best, state.frozen), rest, state.frozen)
        self.step = step
        self.is_due = False

    def finish(self, score: float | None) -> None:
        """Wait for the last save. A finite `score` tells that it is good, so that older ones can be pruned."""
        self._checkpoints.wait(prune=score is not None and math.isfinite(score))

    def _meta(self, step: int, score: float | None, best: BestTracker, frozen: Params) -> CheckpointMeta:
        task = self._task
        return CheckpointMeta(
            step=step,
            model=task.model,
            tokenizer=task.tokenizer,
            labels=task.labels,
            lowercase=task.lowercase,
            separator=task.separator,
            problem_type=task.problem_type,
            hf_config=task.hf_config,
            adapter=self._adapter,
            param_dtypes={dtype_key(path): "int8" for path in int8_paths(frozen)},
            val_score=score,
            training=TrainingMeta(dataclasses.asdict(self._config), best, task.fingerprint),
        )

    def keeps(self) -> str:
        """Wait for the last save, and name the newest checkpoint on disk in words."""
        with contextlib.suppress(RunError):  # the reason for the stop matters more than a failed save
            self._checkpoints.wait(prune=False)
        steps = self._checkpoints.steps()
        return f"the newest checkpoint is {steps[-1] if steps else 'none'}"

    def diverged(self, reason: str, is_worthless: bool = False) -> RunError:
        """Return the error of a run that cannot continue. It names the checkpoint to continue from, and the remedy.

        Args:
          is_worthless: True if the newest checkpoint has the parameters that diverged: they are finite, but their loss
            is not. It is set aside as STEP.diverged if there is an earlier one.
        """
        keeps = self.keeps()
        steps = self._checkpoints.steps()
        if is_worthless and len(steps) > 1:
            self._checkpoints.set_aside(steps[-1], "diverged")
            keeps = self.keeps()
            is_worthless = False
        names = ["peak_lr", *["muon_lr"] * (self._config.optimizer.name == "muon"), "clip_norm"]
        remedy = f"a lower {' or '.join(f'optimizer.{name}' for name in names)}"
        if is_worthless:
            fix = f"Its parameters give such a loss: start in another workdir, with {remedy}."
        elif steps:
            fix = f"The same command with {remedy} continues from it."
        else:
            fix = f"Start again, with {remedy} or more optimizer.warmup_steps."
        return RunError(f"{reason}; {keeps}. {fix}")


@jax.jit
def _are_finite(tree: object) -> jax.Array:
    return functools.reduce(jnp.logical_and, [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)])
