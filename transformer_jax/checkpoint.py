"""The checkpoints of a run directory; the one module that knows Orbax.

    RUN_DIR/checkpoints/500/params/       the parameters alone: all that sampling needs besides meta
                            state/        the rest of the training state (absent where there is none)
                            meta/         JSON: configuration, tokenizer, data fingerprint, versions, losses
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
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from transformer_jax.errors import RunError, UserError

_SEAL = "sha256.json"
_REWRITTEN_BY_RENAME = "_CHECKPOINT_METADATA"  # Orbax stamps the time into it after the seal; nothing is read from it
_TEMPORARY = "*.orbax-checkpoint-tmp*"


class CheckpointError(UserError):
    """A checkpoint that is not there, or is damaged; the message names the file and the way out."""


class _SealingHandler(ocp.CompositeCheckpointHandler):
    """Seals the finished temporary folder; Orbax calls `finalize` in its thread, before it renames the folder."""

    def finalize(self, directory):
        super().finalize(directory)
        folder = Path(directory)
        digests = {str(file.relative_to(folder)): _sha256(file) for file in _files(folder)}
        (folder / _SEAL).write_text(json.dumps(digests, indent=1))


@ocp.args.register_with_handler(_SealingHandler, for_save=True, for_restore=True)
class _Sealed(ocp.args.Composite):
    """The items of one checkpoint, to be saved with a seal."""


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file() and f.name not in (_SEAL, _REWRITTEN_BY_RENAME))


def _sha256(file: Path) -> str:
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


class Checkpoints:
    """The checkpoints of one run directory: save, find, restore.

    Args:
      run_dir: the run directory; it need not exist yet.
      keep: newest checkpoints to keep when saving; the best by `meta["val_score"]` is kept besides.
    """

    def __init__(self, run_dir: str | Path, keep: int = 3):
        self.folder = Path(run_dir).expanduser().absolute() / "checkpoints"
        self._keep = keep
        self._checkpointer = None
        self._pending_step = None

    def steps(self) -> list[int]:
        """Steps that have a folder, oldest first, sound or not."""
        if not self.folder.is_dir():
            return []
        return sorted(int(f.name) for f in self.folder.iterdir() if f.name.isdecimal() and f.is_dir())

    def damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint, naming the file; None if every file matches its seal."""
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
        """The step of a sound checkpoint.

        Args:
          which: "latest", "best" (by the validation score) or a step. "latest" and "best" pass over damaged
            checkpoints, with a warning on stderr that names the damaged file.
        Raises:
          CheckpointError: there is none, or the step asked for is damaged or absent.
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
                raise CheckpointError(f"{self.folder}: no checkpoint was validated yet. Use checkpoint=latest.")
        elif str(which).isdecimal() and int(which) in steps:
            problem = self.damage(int(which))
            if problem:
                raise CheckpointError(f"checkpoint {which} is damaged: {problem}. Others: {_listed(steps)}.")
            return int(which)
        else:
            raise CheckpointError(f"checkpoint={which}: there is none. Choose latest, best or one of {_listed(steps)}.")
        for step in candidates:
            problem = self.damage(step)
            if not problem:
                return step
            _warn(f"checkpoint {step} is damaged and passed over: {problem}")
        raise CheckpointError(
            f"{self.folder}: none of its checkpoints ({_listed(steps)}) is sound. Restore them from a copy, or start "
            "anew in another directory; nothing was changed."
        )

    def meta(self, step: int) -> dict:
        """The JSON part: configuration, tokenizer, fingerprint, versions, losses."""
        return self._restore(step, meta=ocp.args.JsonRestore())["meta"]

    def restore(self, step: int, **templates: Any) -> dict:
        """Arrays of a checkpoint, put where the templates say.

        Args:
          templates: `params=` and/or `state=`: pytrees of arrays or jax.ShapeDtypeStruct with shardings.
        """
        return self._restore(step, **{name: ocp.args.StandardRestore(tree) for name, tree in templates.items()})

    def save(self, step: int, params: Any, meta: dict, state: Any = None) -> None:
        """Start to save; returns when the arrays are copied, and the rest goes on in the background.

        Waits for the save before this one, which it seals by waiting; then drops what is no longer kept.

        Raises:
          RunError: the save before this one failed, or this one could not begin. Earlier ones are untouched.
        """
        self.wait()
        path = self._path(step)
        if path.exists():  # damaged, or it would have been resumed from; its files may still be of use to someone
            aside = next(p for i in range(1000) if not (p := path.with_name(f"{step}.damaged{i or ''}")).exists())
            path.rename(aside)
        items = {"params": ocp.args.StandardSave(params), "meta": ocp.args.JsonSave(meta)}
        if state is not None:
            items["state"] = ocp.args.StandardSave(state)
        self._pending_step = step
        with self._failing_as_one_error(step):
            if self._checkpointer is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                for leftover in self.folder.glob(_TEMPORARY):  # of a save that a kill cut off
                    shutil.rmtree(leftover, ignore_errors=True)
                # Orbax logs the traceback of a failed save before it raises; the one error below says it in a line.
                logging.getLogger("absl").setLevel(logging.CRITICAL)
                self._checkpointer = ocp.AsyncCheckpointer(_SealingHandler())
            self._checkpointer.save(path, args=_Sealed(**items))

    def wait(self) -> None:
        """Wait until the last save is on disk and sealed. Raises RunError if it failed."""
        if self._pending_step is None:
            return
        step, self._pending_step = self._pending_step, None
        with self._failing_as_one_error(step):
            self._checkpointer.wait_until_finished()
        self._prune(step)

    @contextlib.contextmanager
    def _failing_as_one_error(self, step: int):
        try:
            yield
        except Exception as error:  # OSError, or what tensorstore makes of it; whichever, the run cannot go on
            reason = f"{type(error).__name__}: {_first_line(error)}"
            raise RunError(
                f"checkpoint {step} in {self.folder} could not be saved ({reason}). Is the disk full? "
                f"Checkpoints there: {_listed(self.steps()) or 'none'}."
            ) from error

    def _prune(self, newest: int) -> None:
        # Later ones are damaged, or the run would have gone on from them: they do not count among the kept.
        sealed = [step for step in self.steps() if step <= newest and (self._path(step) / _SEAL).exists()]
        scores = {step: score for step in sealed if (score := self._val_score(step)) is not None}
        best = max(scores, key=lambda s: (scores[s], -s), default=None)
        for step in sealed[: -self._keep]:
            if step != best:
                shutil.rmtree(self._path(step), ignore_errors=True)

    def _val_score(self, step: int) -> float | None:
        try:
            return self.meta(step)["val_score"]
        except (CheckpointError, KeyError):
            return None  # damaged: `damage` tells what, to whoever wants to load it

    def _path(self, step: int) -> Path:
        return self.folder / str(step)

    def _restore(self, step: int, **items: Any) -> dict:
        path = self._path(step)
        try:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
                restored = checkpointer.restore(path, args=ocp.args.Composite(**items))
                return {name: restored[name] for name in items}
        except Exception as error:  # Orbax raises ValueError, KeyError, JSONDecodeError and bare Exception for damage
            message = f"checkpoint {path} cannot be read ({type(error).__name__}: {_first_line(error)})."
            raise CheckpointError(f"{message} Choose another with checkpoint=<step>.") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:300]


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps))


def abstract(tree: Any, sharding: jax.sharding.Sharding | None = None) -> Any:
    """Shapes and types of a pytree, as a template for `restore`, to be put with `sharding` (default: first device)."""
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
