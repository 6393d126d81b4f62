"""Resume a run from its checkpoint: which settings may change, and checks that the data is the same."""

import dataclasses
from typing import Any

from transformer_jax.checkpoint import Checkpoints
from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.schema import config_fields

from .config import Config

# Fields that may change on resume: none changes the model, the examples or their order. All others are refused.
MAY_CHANGE = {
    "data.path",  # a file may move: the digests of its content are compared
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
    "checkpoint.save_every",
    "checkpoint.keep",
}


def last_checkpoint(checkpoints: Checkpoints) -> tuple[int, dict[str, Any] | None]:
    """Return step and meta of the newest sound checkpoint; (0, None) if nothing was ever saved.

    Raises:
      CheckpointError: there are checkpoints, but none is sound. The run must not silently start again from step 0.
    """
    if not checkpoints.steps():
        return 0, None
    step = checkpoints.find("latest")
    return step, checkpoints.meta(step)


def changed_fields(meta: dict[str, Any] | None, config: Config) -> list[str]:
    """Return a line "field: old -> new" for each setting that changed since the checkpoint and may change.

    Args:
      meta: of the checkpoint, with its resolved configuration as nested dicts; None: no checkpoint, nothing changed.
      config: the new configuration; a model.vocab_size of 0 stands for the old one.
    Raises:
      UserError: a setting changed that must not.
    """
    changes: list[str] = []
    if not meta:
        return changes
    for name in config_fields(Config):
        section, field = name.split(".")
        old = meta["config"][section].get(field)
        new = getattr(getattr(config, section), field)
        if old == new or (name == "model.vocab_size" and new == 0):
            continue
        if name not in MAY_CHANGE:
            raise UserError(
                f"{name}={new!r}: the checkpoint in this workdir was trained with {old!r}, and this cannot change when "
                f"a run is resumed. Use {old!r}, or another workdir. These may change: {', '.join(sorted(MAY_CHANGE))}."
            )
        changes.append(f"{name}: {old!r} -> {new!r}")
    return changes


def check_data(meta: dict[str, Any] | None, fingerprint: dict[str, Any]) -> None:
    """Check that the data is that of the checkpoint with `meta`. Raises UserError that names what differs."""
    if not meta:
        return
    for name, old in meta["fingerprint"].items():
        if fingerprint.get(name) != old:
            raise UserError(
                f"data: {name} is {fingerprint.get(name)}, but was {old} when the checkpoint was saved. "
                "Give the same text (data.source, data.path), or another workdir."
            )


def with_vocab_size(model: TransformerConfig, tokenizer_size: int) -> TransformerConfig:
    """Return the model's configuration with its vocab_size resolved: 0 becomes the tokenizer's number of ids.

    Raises:
      UserError: the model has fewer ids than the tokenizer.
    """
    if 0 < model.vocab_size < tokenizer_size:
        raise UserError(
            f"model.vocab_size={model.vocab_size}: the tokenizer has {tokenizer_size} ids. Take 0 to use that number."
        )
    return dataclasses.replace(model, vocab_size=model.vocab_size or tokenizer_size)
