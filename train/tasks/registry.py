"""Task registry: build the task that `train.task` names.

A task is one function (config, init_from) -> Task, and one entry in TASKS.
"""

import dataclasses
from collections.abc import Callable

from transformer_jax.errors import UserError, choose

from ..config import Config, TokenizerConfig
from ..initialization import InitFrom
from .base import Task
from .language_modeling import causal_lm, masked_lm, spans
from .supervised import classify, regress, seq2seq, tag

TASKS: dict[str, Callable[[Config, InitFrom], Task]] = {
    "causal_lm": causal_lm,
    "masked_lm": masked_lm,
    "spans": spans,
    "classify": classify,
    "regress": regress,
    "tag": tag,
    "seq2seq": seq2seq,
}


def load_task(config: Config, init_from: InitFrom) -> Task:
    """Build the task that `train.task` names.

    Raises:
      UserError: an unknown task or data source, a metric of `train.best_by` that this run does not measure, a
        tokenizer beside that of `train.init_from`, or data that the source refuses.
    """
    make_task = choose(TASKS, config.train.task, "train.task")
    _check_tokenizer(config.tokenizer, init_from)
    task = make_task(config, init_from)
    best_by = config.train.best_by or task.best_by
    if best_by not in task.metrics:
        raise UserError(
            f"train.best_by={best_by!r}: must be a metric that train.task={config.train.task!r} measures in this run. "
            f"Take one of: {', '.join(task.metrics)}."
        )
    return dataclasses.replace(task, best_by=best_by, hf_config=init_from.hf_config)


def _check_tokenizer(config: TokenizerConfig, init_from: InitFrom) -> None:
    """Refuse settings of a new tokenizer where the model of `train.init_from` has one."""
    if init_from.run is None or init_from.tokenizer is None:
        return
    default = TokenizerConfig()
    for name in ("kind", "vocab_size", "path", "separate"):
        value = getattr(config, name)
        if value != getattr(default, name):
            raise UserError(
                f"tokenizer.{name}={value!r}: the model of train.init_from has a tokenizer, which is used as it is. "
                f"Take {getattr(default, name)!r}."
            )
