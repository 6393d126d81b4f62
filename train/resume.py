"""Resume a run from its checkpoint: which settings may change, and checks that the data is the same."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from transformer_jax.checkpoints.meta import CheckpointMeta
from transformer_jax.checkpoints.store import CheckpointError, Checkpoints
from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.schema import config_fields

from .config import Config

# Fields that may change on resume: none changes the model, the examples or their order. All others are refused.
MAY_CHANGE = {
    "data.cache_dir",
    "data.path",  # a file may move: the digests of its content are compared
    "optimizer.peak_lr",
    "optimizer.muon_lr",
    "optimizer.schedule",
    "optimizer.warmup_steps",
    "optimizer.final_lr_fraction",
    "optimizer.weight_decay",
    "optimizer.b1",
    "optimizer.b2",
    "optimizer.clip_norm",
    "train.num_steps",
    "train.parallel",
    "train.remat",
    "train.steps_per_call",
    "train.log_every",
    "train.eval_every",
    "train.max_consecutive_skips",
    "train.tensorboard",
    "train.patience",
    "checkpoint.save_every",
    "checkpoint.keep",
}


def last_checkpoint(checkpoints: Checkpoints) -> CheckpointMeta | None:
    """Return the metadata of the newest sound checkpoint; None if nothing was ever saved.

    Raises:
      CheckpointError: there are checkpoints, but none is sound. The run must not silently start again from step 0.
    """
    if checkpoints.is_empty():
        return None
    meta = checkpoints.meta(checkpoints.find("latest"))
    checkpoints.check_arrays(meta.step, checkpoints.shapes(meta))
    return meta


def owes_evaluation(meta: CheckpointMeta) -> bool:
    """Return whether the evaluation of a checkpoint's step is still to be made: a signal broke it off."""
    if meta.training is None or meta.val_score is not None:
        return False
    train = trained_config(meta, "").train
    return is_due(meta.step, train.num_steps, train.eval_every)


def is_due(step: int, num_steps: int, every: int) -> bool:
    """Return whether something that is done every `every` steps, and at the last step, is due after `step`."""
    return step % every == 0 or step == num_steps


def trained_config(meta: CheckpointMeta, run_dir: str | Path) -> Config:
    """Return the settings that a checkpoint was trained with.

    Raises:
      CheckpointError: it was written by `tj.save`, or this version does not have its settings.
    """
    if meta.training is None:
        raise CheckpointError(
            f"{run_dir}: was not trained by transformer_jax, so it has no task. Give a training run; to train its "
            "model further, take it as train.init_from of a new one."
        )
    try:
        return Config.from_dict(meta.training.config)
    except UserError as error:
        raise CheckpointError(f"{run_dir}: has settings of another version. {error} Or train again.") from error


def changed_fields(before: Config | None, config: Config) -> list[str]:
    """Return a line "field: old -> new" for each setting that changed since the checkpoint and may change.

    Args:
      before: settings of the checkpoint, with the model's configuration resolved; None: no checkpoint, nothing changed.
      config: the new settings; a model.vocab_size of 0 stands for the old one.
    Raises:
      UserError: a setting changed that must not.
    """
    changes: list[str] = []
    if before is None:
        return changes
    for name in config_fields(Config):
        section, field = name.split(".")
        old, new = (getattr(getattr(settings, section), field) for settings in (before, config))
        if old == new or (name == "model.vocab_size" and new == 0):
            continue
        if name not in MAY_CHANGE:
            raise UserError(
                f"{name}={new!r}: the checkpoint in this workdir was trained with {old!r}, and this cannot change when "
                f"a run is resumed. Use {old!r}, or another workdir. These may change: {', '.join(sorted(MAY_CHANGE))}."
            )
        changes.append(f"{name}: {old!r} -> {new!r}")
    return changes


def check_data(before: Mapping[str, str | int], fingerprint: Mapping[str, str | int]) -> None:
    """Check that the data has the fingerprint of the checkpoint. Raises UserError that names what differs."""
    for name, old in before.items():
        if name not in fingerprint or fingerprint[name] != old:
            new = fingerprint[name] if name in fingerprint else None
            raise UserError(
                f"data: {name} is {new}, but was {old} when the checkpoint was saved. "
                "Give the same text (data.source, data.path), or another workdir."
            )


def with_vocab_size(model: TransformerConfig, tokenizer_size: int) -> TransformerConfig:
    """Return the model's configuration with its vocab_size resolved: 0 becomes the tokenizer's number of ids.

    Raises:
      UserError: the model has fewer ids than the tokenizer.
    """
    if 0 < model.vocab_size < tokenizer_size:
        raise UserError(
            f"model.vocab_size={model.vocab_size}: the tokenizer has {tokenizer_size} ids. Take 0 to use that number; "
            f"where train.init_from has that model, train.resize_vocab=True and model.vocab_size={tokenizer_size}."
        )
    return dataclasses.replace(model, vocab_size=model.vocab_size or tokenizer_size)
