"""Checkpoints of a run directory, saved in the background and sealed; the one module that knows Orbax.

    RUN_DIR/checkpoints/500/params/       the parameters alone: with meta, all that sampling needs
                            state/        the rest of the training state (absent where there is none)
                            meta/         JSON of a CheckpointMeta: model, tokenizer, settings, scores, versions
                            sha256.json   the seal: a digest of every file above

Orbax writes a checkpoint in the background into a temporary folder and renames it when it is complete, so
a kill leaves either all of it or nothing. It has no checksum on array data, so the seal is written inside
that folder just before the rename: a checkpoint that exists is sealed, and one whose files do not match
their seal is never loaded.
"""

import contextlib
import hashlib
import json
import logging
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from transformer_jax.checkpoint_meta import CheckpointMeta
from transformer_jax.errors import RunError, UserError

_SEAL = "sha256.json"
_REWRITTEN_BY_RENAME = "_CHECKPOINT_METADATA"  # Orbax stamps the time into it after the seal; nothing is read from it
_TEMPORARY = "*.orbax-checkpoint-tmp*"


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another version; the message names the file and the fix."""


class _SealingHandler(ocp.CompositeCheckpointHandler):
    """Orbax handler that seals the finished temporary folder: Orbax calls `finalize` in its thread, before renaming."""

    def finalize(self, directory):
        super().finalize(directory)
        folder = Path(directory)
        digests = {str(file.relative_to(folder)): _sha256(file) for file in _files(folder)}
        (folder / _SEAL).write_text(json.dumps(digests, indent=1))


@ocp.args.register_with_handler(_SealingHandler, for_save=True, for_restore=True)
class _Sealed(ocp.args.Composite):
    """The items of one checkpoint, saved with a seal."""


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file() and f.name not in (_SEAL, _REWRITTEN_BY_RENAME))


def _sha256(file: Path) -> str:
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


class Checkpoints:
    """Checkpoints of one run directory: save, find, restore.

    Args:
      run_dir: the run directory; it need not exist yet.
      keep: number of newest checkpoints to keep when saving; the best by `val_score` of its metadata is kept as well.
    """

    def __init__(self, run_dir: str | Path, keep: int = 3):
        self.folder = Path(run_dir).expanduser().absolute() / "checkpoints"
        self._keep = keep
        self._checkpointer: ocp.AsyncCheckpointer | None = None
        self._pending_step: int | None = None

    def steps(self) -> list[int]:
        """List the steps that have a folder, oldest first, damaged or not."""
        if not self.folder.is_dir():
            return []
        return sorted(int(f.name) for f in self.folder.iterdir() if f.name.isdecimal() and f.is_dir())

    def damage(self, step: int) -> str | None:
        """Describe the damage of a checkpoint, naming the file; None if every file matches its seal."""
        folder = self._path(step)
        try:
            digests = json.loads((folder / _SEAL).read_text())
            names = [(name, str(digest)) for name, digest in digests.items()]
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            return f"{folder / _SEAL}: no readable seal ({type(error).__name__})"
        if not names:
            return f"{folder / _SEAL}: empty"
        for name, digest in names:
            file = folder / name
            if not file.is_file():
                return f"{file}: missing"
            if _sha256(file) != digest:
                return f"{file}: does not match its sha256 digest"
        return None

    def find(self, which: str | int = "latest") -> int:
        """Find the step of an undamaged checkpoint.

        Args:
          which: "latest", "best" (by the validation score) or a step. "latest" and "best" skip damaged
            checkpoints, with a warning on stderr that names the damaged file.
        Raises:
          CheckpointError: there is none, or the requested step is damaged or missing.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"{self.folder}: no checkpoints here. Is this a run directory of `python -m train`?")
        if which == "latest":
            candidates = steps[::-1]
        elif which == "best":
            scores = {step: self._val_score(step) for step in steps}
            candidates = sorted(
                (s for s in steps if scores[s] is not None), key=lambda s: (scores[s], -s), reverse=True
            )
            if not candidates:
                raise CheckpointError(
                    f"{self.folder}: no checkpoint has a validation score yet. Use checkpoint=latest."
                )
        elif str(which).isdecimal() and int(which) in steps:
            problem = self.damage(int(which))
            if problem:
                raise CheckpointError(f"checkpoint {which} is damaged: {problem}. Others: {_listed(steps)}.")
            return int(which)
        else:
            raise CheckpointError(
                f"checkpoint={which}: does not exist. Choose latest, best or one of {_listed(steps)}."
            )
        for step in candidates:
            problem = self.damage(step)
            if not problem:
                return step
            _warn(f"checkpoint {step} is damaged and skipped: {problem}")
        raise CheckpointError(
            f"{self.folder}: none of its checkpoints ({_listed(steps)}) is undamaged. Restore them from a copy, or "
            "start again in another directory; nothing was changed."
        )

    def meta(self, step: int) -> CheckpointMeta:
        """Read the metadata of a checkpoint.

        Raises:
          CheckpointError: unreadable, written in another format, or malformed.
        """
        file = self._path(step) / "meta"
        try:
            meta = CheckpointMeta.from_dict(self._read_meta(step))
        except CheckpointError:
            raise
        except UserError as error:
            fix = "" if str(error).startswith("was written by") else " Choose another with checkpoint=<step>."
            raise CheckpointError(f"{file}: {error}{fix}") from error
        if meta.step != step:
            raise CheckpointError(f"{file}: is that of step {meta.step}. Choose another with checkpoint=<step>.")
        return meta

    def restore(self, step: int, **templates: object) -> dict:
        """Restore arrays of a checkpoint, placed as the templates are sharded.

        Args:
          templates: `params=` and/or `state=`: pytrees of arrays or jax.ShapeDtypeStruct with shardings.
        """
        return self._restore(step, **{name: ocp.args.StandardRestore(tree) for name, tree in templates.items()})

    def save(self, params: object, meta: CheckpointMeta, state: object = None) -> None:
        """Start to save; return once the arrays are copied, and continue in the background.

        Waits first until the previous save is sealed, then removes checkpoints that are no longer kept.

        Raises:
          RunError: the previous save failed, or this one could not begin. Earlier checkpoints are untouched.
        """
        self.wait()
        step = meta.step
        path = self._path(step)
        if path.exists():  # damaged, or the run would have resumed from it; someone may still need its files
            aside = next(p for i in range(1000) if not (p := path.with_name(f"{step}.damaged{i or ''}")).exists())
            path.rename(aside)
        items: dict[str, ocp.args.CheckpointArgs] = {
            "params": ocp.args.StandardSave(params),
            "meta": ocp.args.JsonSave(meta.to_dict()),
        }
        if state is not None:
            items["state"] = ocp.args.StandardSave(state)
        self._pending_step = step
        with self._as_run_error(step):
            if self._checkpointer is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                for leftover in self.folder.glob(_TEMPORARY):  # from a save that was killed
                    shutil.rmtree(leftover, ignore_errors=True)
                # Orbax logs the traceback of a failed save before it raises; `_as_run_error` reports it in one line.
                logging.getLogger("absl").setLevel(logging.CRITICAL)
                self._checkpointer = ocp.AsyncCheckpointer(_SealingHandler())
            self._checkpointer.save(path, args=_Sealed(**items))

    def wait(self) -> None:
        """Wait until the last save is on disk and sealed. Raises RunError if it failed."""
        if self._pending_step is None:
            return
        step = self._pending_step
        self._pending_step = None
        assert self._checkpointer is not None, "a pending save has a checkpointer"
        with self._as_run_error(step):
            self._checkpointer.wait_until_finished()
        self._prune(step)

    @contextlib.contextmanager
    def _as_run_error(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # OSError, or tensorstore's own exception for it: the run cannot continue either way
            reason = f"{type(error).__name__}: {_first_line(error)}"
            raise RunError(
                f"checkpoint {step} in {self.folder} could not be saved ({reason}). Is the disk full? "
                f"Checkpoints there: {_listed(self.steps()) or 'none'}."
            ) from error

    def _prune(self, newest: int) -> None:
        # Later ones are damaged, or the run would have resumed from them: they do not count towards `keep`.
        sealed = [step for step in self.steps() if step <= newest and (self._path(step) / _SEAL).exists()]
        scores = {step: score for step in sealed if (score := self._val_score(step)) is not None}
        best = max(scores, key=lambda s: (scores[s], -s), default=None)
        for step in sealed[: -self._keep]:
            if step != best:
                shutil.rmtree(self._path(step), ignore_errors=True)

    def _val_score(self, step: int) -> float | None:
        """Validation score of a checkpoint of any format; whoever loads it gets the error from `meta`."""
        try:
            meta = self._read_meta(step)
        except CheckpointError:
            return None  # damaged: `damage` describes it when someone loads it
        score = meta.get("val_score") if isinstance(meta, dict) else None
        return score if isinstance(score, int | float) and not math.isnan(score) else None

    def _read_meta(self, step: int) -> object:
        return self._restore(step, meta=ocp.args.JsonRestore())["meta"]

    def _path(self, step: int) -> Path:
        return self.folder / str(step)

    def _restore(self, step: int, **items: object) -> dict:
        path = self._path(step)
        try:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
                restored = checkpointer.restore(path, args=ocp.args.Composite(**items))
                return {name: restored[name] for name in items}
        except Exception as error:  # for damage Orbax raises ValueError, KeyError, JSONDecodeError, or bare Exception
            message = f"checkpoint {path} cannot be read ({type(error).__name__}: {_first_line(error)})."
            raise CheckpointError(f"{message} Choose another with checkpoint=<step>.") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:300]


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps))


def abstract(tree: object, sharding: jax.sharding.Sharding | None = None) -> Any:
    """Shapes and dtypes of a pytree: a template for `restore`, placed by `sharding` (default: the first device)."""
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
