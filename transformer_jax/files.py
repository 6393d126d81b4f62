"""Files below a folder: bare names from untrusted data, writing that no link leads elsewhere, flushing to the disk.

A run directory may come from somebody else. Its own path may be a link, which its user gave; a link inside it is never
written through.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Collection, Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from transformer_jax.errors import RunError, UserError


def check_file_name(name: object, known: Collection[str], owner: str) -> None:
    """Check the name of a file that comes from data. Raises UserError unless it is one of the known bare names."""
    if not isinstance(name, str) or name not in known:
        raise UserError(f"{owner}: {name!r:.80} is not the name of one of its files. Known: {', '.join(known)}.")


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading, and never wait: a FIFO would block until somebody writes to it.

    Raises:
      OSError: it cannot be opened, or is a FIFO, a socket or a device.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def read_regular(path: Path) -> bytes:
    """Read a regular file. Raises OSError as `open_regular` does."""
    with open_regular(path) as file:
        return file.read()


def check_no_link(path: Path) -> None:
    """Raise UserError if the path is a link: writing through it would write somewhere else."""
    if path.is_symlink():
        raise UserError(f"{path}: is a link, and nothing is written through it. Remove it; link the whole directory.")


def check_is_file(path: Path) -> None:
    """Raise UserError if the path exists and is no regular file: writing to a FIFO would wait for a reader."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is not a regular file. Remove it.")


def make_subfolder(root: Path, *names: str) -> Path:
    """Make a folder, and folders in it, below `root`, whose path may have links. Returns the innermost.

    Raises:
      UserError: one of the folders exists as a link.
    """
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        root = root / name
        check_no_link(root)
        root.mkdir(exist_ok=True)
    return root


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Open a new file beside `path`; it takes the place of `path`, a link or a file, when the block has no error.

    A kill or a power cut leaves the old file or the new one.

    Raises:
      RunError: it cannot be written; the message names `path` and the reason.
    """
    scratch = path.with_name(f"{path.name}.tmp")
    with writing(path):
        scratch.unlink(missing_ok=True)  # of a process that was killed
        try:
            with open(scratch, "xb") as file:  # x: never through a link
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, path)
            flush_to_disk(path.parent)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a RunError that names the path and the system's reason, such as a full disk."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error}).") from error


def flush_to_disk(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk. Some file systems cannot do that for a folder."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(fd)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file in place of `path`, a link or a file."""
    with replace_file(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def open_lock(path: Path) -> BinaryIO:
    """Open a file to lock it, created if there is none and never truncated. Raises UserError: a link, or no file."""
    check_no_link(path)
    check_is_file(path)
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "r+b")
