"""Folder of checkpoints: which steps it has, and which of them are sound, the newest or the best."""

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from transformer_jax.checkpoints.lock import HeldFolders
from transformer_jax.checkpoints.seal import META, Problem, find_problem, seal_of
from transformer_jax.errors import UserError, system_reason, warn
from transformer_jax.files import read_regular

FROZEN = "frozen"  # folder of the parameters that no step of a run changes
_MOST_ATTEMPTS = 100  # to read checkpoints that a training run deletes
T = TypeVar("T")


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another version; the message names the file and the fix."""


class CheckpointFolder:
    """The folder `checkpoints` of a run directory, which need not exist."""

    def __init__(self, run_dir: str | Path):
        self.run_dir = Path(run_dir).expanduser().absolute()
        self.folder = self.run_dir / "checkpoints"
        self._unsound: set[int] = set()  # steps that were found damaged or misnamed
        self._sound_frozen: set[str] = set()  # seals of frozen parameters whose files were checked

    def steps(self) -> list[int]:
        """List the steps that have a folder, oldest first, damaged or not."""
        return sorted(int(name) for name in self._folders() if _is_step(name))

    def is_empty(self) -> bool:
        """Return whether nothing was ever saved here, nor is now: no folder's name begins with a number."""
        return not any(_number(name.split(".")[0]) is not None for name in self._folders())

    def damage(self, step: int) -> Problem | None:
        """Find the reason why a checkpoint is not sound, naming the file; None if it is sound.

        One whose run has frozen parameters is sound only with those that it was trained with.
        """
        problem = find_problem(self._path(step))
        frozen = self._peek(step).get("frozen")
        return problem or (self._frozen_damage(str(frozen)) if frozen else None)

    def _frozen_damage(self, digest: str) -> Problem | None:
        """The reason why the frozen parameters of this run are not those with this seal; None if they are."""
        folder = self.folder / FROZEN
        if digest in self._sound_frozen:
            return None
        problem = find_problem(folder)
        if problem is None and seal_of(folder) != digest:
            problem = Problem("damaged", f"{folder}: holds other frozen parameters than it was trained with")
        if problem is None:
            self._sound_frozen.add(digest)
        return problem

    def find(self, which: str | int = "latest") -> int:
        """Find the step of a sound checkpoint; arguments and errors are those of `read`."""
        return self.read(lambda steps: steps[0], which)

    def read(self, reader: Callable[[list[int]], T], which: str | int = "latest", number: int = 1) -> T:
        """Return `reader(steps)` for sound checkpoints, and keep training runs from deleting them meanwhile.

        Where that is not possible (a network file system without locks), `reader` is called again with others after
        one of them was deleted.

        Args:
          which: "latest", "best" (by the validation score) or a step. "latest" and "best" skip checkpoints that are
            not sound, with a warning on stderr that names the file.
          number: of checkpoints, at most: the first ones of that order.
        Raises:
          CheckpointError: there is none, or the requested step is damaged or missing.
        """
        for _ in range(_MOST_ATTEMPTS):
            warnings: list[str] = []
            with HeldFolders() as held:
                try:
                    steps = self._choose(which, number, held, warnings)
                    if not held.are_in_place():
                        continue
                    warn(*warnings)
                    return reader(steps)
                except CheckpointError:
                    if held.are_in_place():
                        warn(*warnings)
                        raise
        raise CheckpointError(
            f"{self.folder}: each checkpoint was deleted by a training run before it could be read. Try again, or "
            "train with a larger checkpoint.save_every."
        )

    def _choose(self, which: str | int, number: int, held: HeldFolders, warnings: list[str]) -> list[int]:
        """Choose sound checkpoints, as `read` says, and hold every folder that is looked at."""
        steps = self.steps() or self.steps()  # a list that is made during a rename can miss both names
        misnamed = [name for name in self._folders() if not _is_step(name) and _number(name) is not None]
        warnings += [f"{self.folder / name} is skipped: step {_number(name)} must be named so" for name in misnamed]
        if not steps:
            fix = "Is this a run directory of `python -m train`?"
            raise CheckpointError(f"{self.folder}: no checkpoints here. {fix}")
        if which == "latest":
            candidates = steps[::-1]
        elif which == "best":
            candidates = self._by_score(steps, held)
        else:
            return [self._requested(which, steps, held)]
        found: list[int] = []
        for step in candidates:
            held.add(self._path(step))
            problem = self.damage(step)
            if problem:
                self._unsound.add(step)
                warnings.append(f"checkpoint {step} is {problem.kind} and skipped: {problem.reason}")
            else:
                found.append(step)
            if len(found) == number:
                break
        if not found:
            raise CheckpointError(
                f"{self.folder}: none of its checkpoints ({listed(steps)}) is undamaged. Restore them from a copy, or "
                "start again in another directory; nothing was changed."
            )
        return found

    def _requested(self, which: str | int, steps: list[int], held: HeldFolders) -> int:
        names = {str(step): step for step in steps}
        step = names.get(str(which))
        if step is None:
            raise CheckpointError(f"checkpoint={which}: does not exist. Choose latest, best or one of {listed(steps)}.")
        held.add(self._path(step))
        problem = self.damage(step)
        if problem:
            raise CheckpointError(f"checkpoint {step} is {problem.kind}: {problem.reason}. Others: {listed(steps)}.")
        return step

    def _by_score(self, steps: list[int], held: HeldFolders) -> list[int]:
        for step in steps:
            held.add(self._path(step))
        scores = {step: score for step in steps if (score := score_of(self._peek(step))) is not None}
        if not scores:
            raise CheckpointError(f"{self.folder}: no checkpoint has a validation score yet. Use checkpoint=latest.")
        return sorted(scores, key=lambda step: (scores[step], -step), reverse=True)

    def _folders(self) -> list[str]:
        """Names of the folders, and of links, whose target may be gone."""
        try:
            names = os.listdir(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise CheckpointError(f"{self.folder}: cannot be listed ({error.strerror}).") from error
        return [name for name in names if (path := self.folder / name).is_symlink() or path.is_dir()]

    def _peek(self, step: int) -> dict[str, object]:
        """Fields of a checkpoint's metadata, of any format and unchecked; {} if it has none that can be read."""
        try:
            meta = self._read_meta(step)
        except CheckpointError:
            return {}  # damaged: `damage` describes it when someone loads it
        return meta if isinstance(meta, dict) else {}

    def _read_meta(self, step: int) -> object:
        file = self._path(step) / META
        try:
            return json.loads(read_regular(file))
        except (OSError, ValueError, RecursionError) as error:
            fix = "Choose another with checkpoint=<step>."
            raise CheckpointError(f"{file}: cannot be read ({system_reason(error)}). {fix}") from error

    def _path(self, step: int) -> Path:
        return self.folder / str(step)


def score_of(meta: dict[str, object]) -> float | None:
    """Validation score in metadata of any format; None: none, or NaN."""
    score = meta.get("val_score")
    return score if isinstance(score, int | float) and not math.isnan(score) else None


def _is_step(name: str) -> bool:
    return re.fullmatch("0|[1-9][0-9]*", name) is not None


def _number(name: str) -> int | None:
    """The number that a folder's name stands for in any way: 0390, ' 390' and the digits of other scripts too."""
    try:
        return int(name)
    except ValueError:
        return None


def listed(steps: list[int]) -> str:
    """Steps as an error lists them."""
    return ", ".join(map(str, steps))
