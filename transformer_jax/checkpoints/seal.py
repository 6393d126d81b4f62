"""Seal of a checkpoint: SHA-256 digests of all its files, flushed to the disk with them, and checked before reading.

Orbax has no checksum on array data: a flipped bit loads as another number. And what a program wrote may be lost in a
power cut until fsync has returned, in any order; so `commit` flushes every file and folder before the rename that
makes the checkpoint exist, and the rename itself before anyone may delete an older one.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from transformer_jax.files import flush_to_disk, open_regular, read_regular

SEAL = "sha256.json"
META = "meta/metadata"
_NEEDED = (META, "params/_METADATA")  # without these a folder is no checkpoint, whatever its seal says
OF_THE_PROCESS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # say nothing about the file that could not be opened


class Problem(NamedTuple):
    """The reason why a folder is no sound checkpoint."""

    kind: str  # damaged | misnamed: sound, but of another step than its folder says, such as a copy or a link
    reason: str  # begins with the file


def commit(folder: Path, final: Path) -> None:
    """Seal a complete temporary folder, flush it to the disk and rename it to `final`, atomically.

    A folder that has this name already stays until then. A sound one is deleted; between the two renames it is
    `final.replaced`, which `recover` takes back after a kill. Any other is kept as `final.damaged`.
    """
    paths = sorted(folder.rglob("*"), reverse=True)  # what is in a folder before the folder
    files = [path for path in paths if path.is_file()]
    digests = {path.relative_to(folder).as_posix(): _sha256(path) for path in sorted(files)}
    for path in paths:
        flush_to_disk(path)
    seal = folder / SEAL
    seal.write_text(json.dumps(digests, indent=1))
    flush_to_disk(seal)
    flush_to_disk(folder)
    replaced = None
    if os.path.lexists(final):
        is_sound = not final.is_symlink() and find_problem(final) is None
        replaced = _replaced(final) if is_sound else free_name(final, "damaged")
        os.rename(final, replaced)
    os.rename(folder, final)
    flush_to_disk(final.parent)
    if replaced == _replaced(final):
        shutil.rmtree(replaced)


def seal_of(folder: Path) -> str:
    """Digest of a folder's seal, and so of all its files."""
    return _sha256(folder / SEAL)


def recover(final: Path) -> None:
    """Finish a `commit` that was killed between its renames: take the replaced folder back, or delete it."""
    if os.path.lexists(final):
        shutil.rmtree(_replaced(final))
    else:
        os.rename(_replaced(final), final)


def _replaced(final: Path) -> Path:
    return final.with_name(f"{final.name}.replaced")


def free_name(folder: Path, why: str) -> Path:
    """The first of FOLDER.WHY, FOLDER.WHY1, ... that does not exist."""
    candidates = (folder.with_name(f"{folder.name}.{why}{i or ''}") for i in range(1000))
    return next(path for path in candidates if not os.path.lexists(path))


def find_problem(folder: Path) -> Problem | None:
    """Find the reason why a folder is no sound checkpoint; None if all files match the seal and the name the step.

    A file that cannot be read (permission, input/output error) is damage too.

    Raises:
      OSError: this process has too many open files, or no memory.
    """
    damage = _find_damage(folder)
    if damage:
        return Problem("damaged", damage)
    try:
        meta = json.loads(read_regular(folder / META))
    except (ValueError, RecursionError):
        return Problem("damaged", f"{folder / META}: is not JSON")
    step = meta.get("step") if isinstance(meta, dict) else None  # of another type: whoever reads the fields says so
    if type(step) is int and str(step) != folder.name:
        return Problem("misnamed", f"{folder / 'meta'}: is that of step {step}, not {folder.name}")
    return None


def _find_damage(folder: Path) -> str | None:
    seal = folder / SEAL
    try:
        digests = json.loads(read_regular(seal))
        names = [(name, str(digest)) for name, digest in digests.items()]
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        return f"{seal}: no readable seal ({_reason(error)})"
    if not names:
        return f"{seal}: empty"
    missing = [name for name in _NEEDED if name not in digests]
    if missing:
        return f"{seal}: does not list {missing[0]}"
    for name, digest in names:
        file = folder / name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            return f"{seal}: names a file outside of the checkpoint"
        try:
            if _sha256(file) != digest:
                return f"{file}: does not match its sha256 digest"
        except FileNotFoundError:
            return f"{file}: missing"
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            return f"{file}: {_reason(error)}"
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in OF_THE_PROCESS:
        raise error
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def _sha256(file: Path) -> str:
    with open_regular(file) as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, and flush their entries to the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder, *folder.parents):
        with contextlib.suppress(OSError):  # a parent that may not be listed was there before
            flush_to_disk(path)
