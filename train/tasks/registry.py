"""What a run is about: where its examples come from, which model sees them, and what it is asked for.

A task is one function (config, start, meta) -> Task, and one entry in TASKS.
"""

import dataclasses

from train.config import Config
from train.initialization import Start
from train.tasks.base import Task
from train.tasks.language_modeling import causal_lm, masked_lm, spans
from train.tasks.supervised import classify, regress, seq2seq, tag
from transformer_jax.errors import choose

TASKS = {
    "causal_lm": causal_lm,
    "masked_lm": masked_lm,
    "spans": spans,
    "classify": classify,
    "regress": regress,
    "tag": tag,
    "seq2seq": seq2seq,
}


def load_task(config: Config, start: Start, meta: dict | None) -> Task:
    """The task that `train.task` names; `meta` is that of the checkpoint to go on from."""
    task = choose(TASKS, config.train.task, "train.task")(config, start, meta)
    return dataclasses.replace(task, origin=start.origin)
