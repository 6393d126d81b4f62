"""What a run is about: where its examples come from, which model sees them, and what it is asked for.

A task is one function (config, init_from, meta) -> Task, and one entry in TASKS.
"""

import dataclasses

from transformer_jax.errors import choose

from ..config import Config
from ..initialization import InitFrom
from .base import Task
from .language_modeling import causal_lm, masked_lm, spans
from .supervised import classify, regress, seq2seq, tag

TASKS = {
    "causal_lm": causal_lm,
    "masked_lm": masked_lm,
    "spans": spans,
    "classify": classify,
    "regress": regress,
    "tag": tag,
    "seq2seq": seq2seq,
}


def load_task(config: Config, init_from: InitFrom, meta: dict | None) -> Task:
    """The task that `train.task` names; `meta` is that of the checkpoint to go on from."""
    task = choose(TASKS, config.train.task, "train.task")(config, init_from, meta)
    return dataclasses.replace(task, hf_config=init_from.hf_config)
