"""Run directory of a training run: its lock, and config.json."""

import contextlib
import dataclasses
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.files import check_no_link, open_lock, write_text
from transformer_jax.models import Seq2SeqConfig

from .config import Config


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Lock the run directory for this process. The lock ends with the process, however that ends.

    Raises:
      UserError: it cannot be written to, another process trains in it, or one of its folders is a link.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        for name in ("checkpoints", "tensorboard"):
            check_no_link(workdir / name)
        file = open_lock(workdir / ".lock")
    except OSError as error:
        raise UserError(f"workdir={workdir}: cannot be written to ({error.strerror}). Give another.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"workdir={workdir}: another process is training here. Wait for it, or stop it.") from error
        yield


def write_config(workdir: Path, config: Config, model_config: TransformerConfig | Seq2SeqConfig) -> None:
    """Write config.json: the run's settings, and the resolved model. For people; no code reads it."""
    values = dataclasses.asdict(config) | {"model": dataclasses.asdict(model_config)}
    write_text(workdir / "config.json", json.dumps(values, indent=1) + "\n")
