"""Locks of checkpoint folders: a reader holds them, and a training run deletes only those that nobody holds.

A lock is a `flock` of the folder itself, which ends with its process. File systems without it (some network file
systems) lock nothing there; a reader then sees by `are_in_place` that a folder was removed, and chooses another.
"""

import contextlib
import fcntl
import os
import re
import shutil
from pathlib import Path

from transformer_jax.checkpoints.seal import OF_THE_PROCESS, recover

SAVING = ".orbax-checkpoint-tmp"
_DELETING = ".deleting"
_REPLACED = ".replaced"
_LEFTOVER = re.compile(rf"(0|[1-9][0-9]*|frozen)({_DELETING}|{_REPLACED}|{SAVING})".replace(".", r"\."))
_GONE = -1  # no inode has this number


class HeldFolders(contextlib.ExitStack):
    """Folders that this process reads: none is deleted by `delete` before the context ends."""

    def __init__(self) -> None:
        super().__init__()
        self._inodes: dict[Path, int | None] = {}  # None: a link whose target does not exist

    def add(self, folder: Path) -> None:
        """Hold one more folder. One that cannot be opened is only watched: whoever reads it finds the reason."""
        if folder in self._inodes:
            return
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            if error.errno in OF_THE_PROCESS:
                raise
            self._inodes[folder] = _inode(folder)
            if not os.path.lexists(folder):
                self._inodes[folder] = _GONE
            return
        self.callback(os.close, fd)
        with contextlib.suppress(OSError):  # no locks here
            fcntl.flock(fd, fcntl.LOCK_SH)
        self._inodes[folder] = os.fstat(fd).st_ino

    def are_in_place(self) -> bool:
        """Return whether every folder is still the one that was added, under its name."""
        return all(_inode(folder) == inode for folder, inode in self._inodes.items())


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def delete(folder: Path) -> None:
    """Delete a folder, or a link to one, unless a process holds it. Until it is gone its name is NAME.deleting.

    Raises:
      OSError: it cannot be renamed or deleted.
    """
    with contextlib.ExitStack() as stack:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:  # no locks here
            pass
        renamed = folder.with_name(folder.name + _DELETING)
        if os.path.lexists(renamed):
            _remove(renamed)
        os.rename(folder, renamed)
    _remove(renamed)


def leftovers(folder: Path) -> list[Path]:
    """List what killed saves and deletions left in a folder of checkpoints; a save in progress looks the same."""
    paths = [folder / name for name in os.listdir(folder) if _LEFTOVER.fullmatch(name)]
    return [path for path in paths if path.is_dir() or path.is_symlink()]


def delete_leftover(path: Path) -> None:
    """Delete what `leftovers` found, or rename it back if it is the only one of its step. Raises OSError."""
    if path.name.endswith(_REPLACED):
        recover(path.with_name(path.name.removesuffix(_REPLACED)))
    else:
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path)
