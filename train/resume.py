"""Going on from a checkpoint: what must be the same as before, and what may change."""

import dataclasses
from typing import Any

from transformer_jax.checkpoint import Checkpoints
from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.schema import config_fields

from .config import Config

# Fields whose change leaves the model, the examples and their order as they were. All others are refused.
MAY_CHANGE = {
    "data.path",  # a file may move: its content is compared by digest
    "optimizer.peak_lr",
    "optimizer.muon_lr",
    "optimizer.schedule",
    "optimizer.warmup_steps",
    "optimizer.final_lr_fraction",
    "optimizer.weight_decay",
    "optimizer.b1",
    "optimizer.b2",
    "train.num_steps",
    "train.parallel",
    "train.steps_per_call",
    "train.log_every",
    "train.eval_every",
    "train.max_consecutive_skips",
    "train.tensorboard",
    "train.patience",
    "train.best_by",
    "checkpoint.save_every",
    "checkpoint.keep",
}


def last_checkpoint(checkpoints: Checkpoints) -> tuple[int, dict | None]:
    """Step and meta of the newest sound checkpoint; (0, None) where nothing was ever saved.

    Raises:
      CheckpointError: there are checkpoints, and none is sound: that is no reason to start afresh.
    """
    if not checkpoints.steps():
        return 0, None
    step = checkpoints.find("latest")
    return step, checkpoints.meta(step)


def changed_fields(before: dict, now: Config) -> list[str]:
    """Lines "field: before -> now" for what changed and may change.

    Args:
      before: the resolved configuration of a checkpoint, as nested dicts.
      now: the configuration asked for; a model.vocab_size of 0 stands for the one before.
    Raises:
      UserError: something changed that may not.
    """
    changes = []
    for name in config_fields(Config):
        section, field = name.split(".")
        old, new = before[section].get(field), getattr(getattr(now, section), field)
        if old == new or (name == "model.vocab_size" and new == 0):
            continue
        if name not in MAY_CHANGE:
            raise UserError(
                f"{name}={new!r}: the checkpoint in this workdir was trained with {old!r}, and this cannot change on "
                f"the way. Use {old!r}, or another workdir. These may change: {', '.join(sorted(MAY_CHANGE))}."
            )
        changes.append(f"{name}: {old!r} -> {new!r}")
    return changes


def check_data(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with other data. Raises UserError that names what differs."""
    for name, old in before.items():
        if now.get(name) != old:
            raise UserError(
                f"data: {name} is {now.get(name)}, and was {old} when the checkpoint was saved. "
                "Give the same text (data.source, data.path), or another workdir."
            )


def with_vocabulary(model: TransformerConfig, tokenizer_size: int) -> TransformerConfig:
    """The model's configuration with as many token ids as the tokenizer has, or more where it asks for more."""
    if 0 < model.vocab_size < tokenizer_size:
        raise UserError(
            f"model.vocab_size={model.vocab_size}: the tokenizer has {tokenizer_size} ids. Take 0 to use as many."
        )
    return dataclasses.replace(model, vocab_size=model.vocab_size or tokenizer_size)
