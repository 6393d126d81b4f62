"""Checkpoints of a run directory, saved in the background and sealed; the one module that knows Orbax.

    RUN_DIR/checkpoints/500/params/       the parameters alone: with meta, all that sampling needs
                            state/        the rest of the training state (absent where there is none)
                            meta/         JSON of a CheckpointMeta: model, tokenizer, settings, scores, versions
                            sha256.json   the seal: a digest of every file above
                        frozen/           parameters that no step changes, written once and never deleted; a step's
                                          params are then the others

Orbax writes a checkpoint in the background into a temporary folder. `seal.commit` seals that, flushes it to
the disk and renames it, so a kill or a power cut leaves either all of it or nothing. One whose files do not match its
seal is never loaded, and none is deleted while a process loads it (`lock.py`).
"""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from transformer_jax.checkpoints.folder import FROZEN, CheckpointError, CheckpointFolder, listed, score_of
from transformer_jax.checkpoints.lock import SAVING, delete, delete_leftover, leftovers
from transformer_jax.checkpoints.meta import CheckpointMeta
from transformer_jax.checkpoints.seal import SEAL, commit, free_name, make_folder, seal_of
from transformer_jax.errors import RunError, UserError, system_reason, warn
from transformer_jax.files import check_no_link
from transformer_jax.models import Params, merge_params, split_params
from transformer_jax.models.adapters import all_shapes
from transformer_jax.models.quantization import with_dtypes


class _SealedFolder(ocp.path.atomicity.CommitFileTemporaryPath):
    """Temporary folder of a save; Orbax calls `finalize` in its thread when all files are written."""

    async def finalize(self) -> None:
        await super().finalize()
        folder = Path(self.get())
        commit(folder, folder.with_name(folder.name.removesuffix(SAVING)))


class Checkpoints(CheckpointFolder):
    """Checkpoints of one run directory: save, find, restore.

    Args:
      run_dir: the run directory; it need not exist yet.
      keep: number of newest checkpoints to keep when saving; the best by `val_score` of its metadata is kept as well.
    """

    def __init__(self, run_dir: str | Path, keep: int = 3):
        super().__init__(run_dir)
        self._keep = keep
        self._checkpointer: ocp.AsyncCheckpointer | None = None
        self._pending_step: int | None = None
        self._identity: tuple[int, int] | None = None  # of the run directory that is saved into

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
        return meta

    def shapes(self, meta: CheckpointMeta) -> Params:
        """Shapes and types of the parameters and the adapter of a checkpoint with these metadata.

        Raises:
          CheckpointError: the adapter, or a type, does not fit the model.
        """
        try:
            return with_dtypes(all_shapes(meta.model, meta.adapter), meta.param_dtypes)
        except UserError as error:
            fix = "Choose another with checkpoint=<step>."
            raise CheckpointError(f"{self._path(meta.step) / 'meta'}: {error} {fix}") from error

    def check_arrays(self, step: int, params: object) -> None:
        """Check that the parameters of a checkpoint, with the frozen ones, have the names and shapes of a tree's.

        Raises:
          CheckpointError: its metadata describe another model than its arrays are of.
        """
        with self._as_checkpoint_error(step):
            stored = self.frozen_shapes(step) | _stored_shapes(self._path(step))
        expected = _shapes(params)
        problems = [f"{name} is missing" for name in expected if name not in stored]
        problems += [f"{name} is unknown" for name in stored if name not in expected]
        for name, shape in expected.items():
            if name in stored and stored[name] != shape:
                problems.append(f"{name} has shape {list(stored[name])} and not {list(shape)}")
        if problems:
            more = f", and {len(problems) - 3:,} more" if len(problems) > 3 else ""
            fix = "Choose another with checkpoint=<step>."
            raise CheckpointError(
                f"{self._path(step)}: its arrays do not fit model in its meta: {', '.join(problems[:3])}{more}. {fix}"
            )

    def restore_params(self, step: int, template: Params) -> Params:
        """Restore all parameters of a checkpoint, the frozen ones of its run too; template and errors as `restore`."""
        with self._as_checkpoint_error(step):
            frozen_names = self.frozen_shapes(step)
        frozen, trained = split_params(template, lambda name: name in frozen_names)
        restored = self.restore(step, params=trained, **({FROZEN: frozen} if frozen else {}))
        return merge_params(restored["params"], restored.get(FROZEN, {}))

    def frozen_shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the frozen parameters, by name; a peek, since `meta` would build the tokenizer each time."""
        return _stored_shapes(self.folder / FROZEN) if self._peek(step).get("frozen") else {}

    def restore(self, step: int, **templates: object) -> dict:
        """Restore arrays of a checkpoint, placed as the templates are sharded.

        Args:
          templates: `params=`, `state=` and `frozen=`: pytrees of arrays or jax.ShapeDtypeStruct with shardings.
        Raises:
          CheckpointError: unreadable, or a parameter has NaN or infinity in it.
        """
        items = {name: ocp.args.StandardRestore(tree) for name, tree in templates.items()}
        of_run = {"params": items.pop(FROZEN)} if FROZEN in items else {}
        restored = self._restore(step, self._path(step), **items)
        if of_run:
            restored[FROZEN] = self._restore(step, self.folder / FROZEN, **of_run)["params"]
        if "params" in restored and (name := _find_not_finite(restored["params"])):
            fix = "Choose another with checkpoint=<step>."
            raise CheckpointError(f"{self._path(step)}: {name} has NaN or infinity in it. {fix}")
        return restored

    def save(self, params: object, meta: CheckpointMeta, state: object = None, frozen: Params | None = None) -> None:
        """Start to save; return once the arrays are copied, and continue in the background.

        Waits first until the previous save is sealed, then removes checkpoints that are no longer kept.

        Args:
          params: the parameters alone, without the frozen ones.
          state: the rest of the training state.
          frozen: parameters that no step of this run changes: saved once, by the first save.
        Raises:
          UserError: `checkpoints` is a link.
          RunError: the previous save failed, or this one could not begin. Earlier checkpoints are untouched.
        """
        check_no_link(self.folder)
        self.wait()
        self._pending_step = meta.step
        with self._as_run_error(meta.step):
            self._make_folder()
            if self._checkpointer is None:
                self.clean_up()
                # Orbax logs the traceback of a failed save before it raises; `_as_run_error` reports it in one line.
                logging.getLogger("absl").setLevel(logging.CRITICAL)
                self._checkpointer = ocp.AsyncCheckpointer(
                    ocp.CompositeCheckpointHandler(), temporary_path_class=_SealedFolder
                )
            if frozen:
                meta = dataclasses.replace(meta, frozen=self._save_frozen(frozen))
            items: dict[str, ocp.args.CheckpointArgs] = {
                "params": ocp.args.StandardSave(params),
                "meta": ocp.args.JsonSave(meta.to_dict()),
            }
            if state is not None:
                items["state"] = ocp.args.StandardSave(state)
            self._start(str(meta.step), items)

    def _start(self, name: str, items: dict[str, ocp.args.CheckpointArgs]) -> None:
        """Start to write a folder of items."""
        assert self._checkpointer is not None, "the caller made one"
        folder = self.folder / f"{name}{SAVING}"
        folder.mkdir(exist_ok=True)  # where that fails, Orbax would leave coroutines that Python warns of
        self._checkpointer.save(folder, args=ocp.args.Composite(**items), force=True)  # force: over a killed save

    def _save_frozen(self, frozen: Params) -> str:
        """Save the frozen parameters, unless they are there. Returns their seal."""
        folder = self.folder / FROZEN
        if not folder.is_dir() or seal_of(folder) not in self._sound_frozen:
            assert self._checkpointer is not None, "the caller made one"
            names = sorted(_shapes(frozen))
            self._start(
                FROZEN, {"params": ocp.args.StandardSave(frozen), "meta": ocp.args.JsonSave({"parameters": names})}
            )
            self._checkpointer.wait_until_finished()
            self._sound_frozen.add(seal_of(folder))
        return seal_of(folder)

    def wait(self, prune: bool = True) -> None:
        """Wait until the last save is on disk and sealed. Raises RunError if it failed.

        Args:
          prune: then delete checkpoints that are no longer kept.
        """
        if self._pending_step is None:
            return
        step = self._pending_step
        self._pending_step = None
        assert self._checkpointer is not None, "a pending save has a checkpointer"
        with self._as_run_error(step):
            self._checkpointer.wait_until_finished()
            self._check_in_place()
        self._unsound.discard(step)
        if prune:
            self.prune(step)

    def set_aside(self, step: int, why: str) -> None:
        """Rename a checkpoint to STEP.WHY, which is never found or deleted; someone may still need its files."""
        os.rename(self._path(step), free_name(self._path(step), why))

    def clean_up(self) -> None:
        """Delete what a killed save or deletion left. Call it first, and only where no other process is saving."""
        self._identity = _identity(self.run_dir)
        for path in leftovers(self.folder) if self.folder.is_dir() else ():
            try:
                delete_leftover(path)
            except OSError as error:
                warn(f"{path}: is left from a killed run, and cannot be deleted ({system_reason(error)})")

    def _make_folder(self) -> None:
        self._check_in_place()
        if not self.folder.is_dir():
            make_folder(self.folder)
        self._identity = _identity(self.run_dir)

    def _check_in_place(self) -> None:
        if self._identity not in (None, _identity(self.run_dir)):
            raise FileNotFoundError(
                f"{self.run_dir} was moved or deleted meanwhile. To continue from its newest checkpoint, give the "
                "directory where it is now"
            )

    @contextlib.contextmanager
    def _as_run_error(self, step: int) -> Iterator[None]:
        try:
            try:
                yield
            except Exception:
                self._check_in_place()
                raise
        except Exception as error:  # OSError, or tensorstore's own exception for it: the run cannot continue either way
            raise RunError(
                f"checkpoint {step} in {self.folder} could not be saved ({system_reason(error)}). "
                f"Checkpoints there: {listed(self.steps()) or 'none'}."
            ) from error

    def prune(self, newest: int) -> None:
        """Delete checkpoints up to the step `newest` that are no longer kept, but for those that a process reads."""
        # Later ones are damaged, or the run would have resumed from them: they do not count towards `keep`.
        steps = [step for step in self.steps() if step <= newest and step not in {*self._unsound, self._pending_step}]
        steps = [step for step in steps if (self._path(step) / SEAL).is_file()]
        metas = {step: meta for step in steps if (meta := self._peek(step)).get("step") == step}
        scores = {step: score for step, meta in metas.items() if (score := score_of(meta)) is not None}
        best = max(scores, key=lambda s: (scores[s], -s), default=None)
        for step in list(metas)[: -self._keep]:
            if step != best:
                try:
                    delete(self._path(step))
                except OSError as error:
                    warn(f"checkpoint {step} is no longer needed, and cannot be deleted ({system_reason(error)})")

    def _restore(self, step: int, folder: Path, **items: object) -> dict:
        with self._as_checkpoint_error(step), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(folder, args=ocp.args.Composite(**items))
            return {name: restored[name] for name in items}

    @contextlib.contextmanager
    def _as_checkpoint_error(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # for damage Orbax raises ValueError, KeyError, JSONDecodeError, or bare Exception
            message = f"checkpoint {self._path(step)} cannot be read ({system_reason(error)})."
            raise CheckpointError(f"{message} Choose another with checkpoint=<step>.") from error


def _stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters in a folder, by name; nothing is loaded."""
    return _shapes(ocp.StandardCheckpointHandler().metadata(folder / "params").tree)


def _shapes(tree: object) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays in a tree, by their names along the path."""
    return {_name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _find_not_finite(tree: object) -> str:
    """Name of the first array that has NaN or infinity, "stack/block_0/norm/scale"; "" if all numbers are finite."""
    library = np if jax.default_backend() == "cpu" else jnp  # NumPy compiles nothing and copies nothing
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not library.isfinite(leaf).all():
            return _name(path)
    return ""


def _name(path: tuple[jax.tree_util.DictKey, ...]) -> str:
    return "/".join(str(key.key) for key in path)


def _identity(folder: Path) -> tuple[int, int] | None:
    """Device and inode of a folder; None if there is none. They stay when it is renamed."""
    try:
        info = folder.stat()
    except OSError:
        return None
    return info.st_dev, info.st_ino


def abstract(tree: object, sharding: jax.sharding.Sharding | None = None) -> Any:
    """Shapes and dtypes of a pytree: a template for `restore`, placed by `sharding` (default: the first device)."""
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
