"""The files of a Hugging Face folder, read as what they are: data of strangers.

Nothing outside the folder is opened, nothing in it is executed, and whatever is malformed is one PretrainedError.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from transformer_jax.errors import UserError

MOST_BYTES_OF_TEXT = 2**27  # of a JSON or tokenizer file; the largest in use have some 20 MB
MOST_DEPTH = 64  # of JSON; Python itself fails on deeper values in more places than one can guard
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class PretrainedError(UserError):
    """A folder that cannot be loaded; the message names the file and what is wrong with it."""


def printable(text: object) -> str:
    """What a stranger wrote, as part of a message: in one line, short, and with nothing that a terminal obeys."""
    text = str(text)[:200]
    return text if text.isprintable() else ascii(text)[1:-1]


def listed(items: Iterable[str], most: int = 1_000) -> str:
    """Strangers' words, sorted, as a part of a message; so many, and how many more there are."""
    items = sorted(items)
    more = [f"and {len(items) - most} more"] if len(items) > most else []
    return "; ".join([*map(printable, items[:most]), *more])


class Folder:
    """A directory whose files are opened by their bare names; links that lead out of it are refused."""

    def __init__(self, path: str | Path):
        try:
            self.path = Path(path).expanduser()
            root = self.path.resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise PretrainedError(f"{printable(path)}: there is no such folder ({type(error).__name__}).") from error
        if not root.is_dir():
            raise PretrainedError(f"{path}: must be a folder with config.json and {WEIGHTS}.")
        self._allowed = [root]
        if root.parent.name == "snapshots":  # huggingface_hub's cache keeps the files of a model beside its versions
            self._allowed.append(root.parent.parent / "blobs")

    def has(self, name: str) -> bool:
        """Whether there is an entry of that name."""
        return os.path.lexists(self.path / name)

    def file(self, name: str) -> Path:
        """The path of a regular file in the folder. Raises PretrainedError for anything else."""
        if not isinstance(name, str) or name != os.path.basename(name) or name in ("", ".", ".."):
            raise PretrainedError(f"{self.path}: {name!r:.80} is not the bare name of a file in the folder.")
        path = self.path / name
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise PretrainedError(f"{path}: cannot be found ({type(error).__name__}).") from error
        if not any(real.is_relative_to(folder) for folder in self._allowed):
            raise PretrainedError(f"{path}: is a link out of the folder. Copy the file itself into it.")
        if not real.is_file():
            raise PretrainedError(f"{path}: must be a regular file.")
        return real

    def data(self, name: str) -> bytes:
        """The bytes of a small file."""
        path = self.file(name)
        if path.stat().st_size > MOST_BYTES_OF_TEXT:
            raise PretrainedError(f"{path}: larger than {MOST_BYTES_OF_TEXT >> 20} MB, which no such file is.")
        try:
            return path.read_bytes()
        except OSError as error:
            raise PretrainedError(f"{path}: cannot be read ({error.strerror}).") from error

    def text(self, name: str) -> str:
        """The text of a small file."""
        try:
            return self.data(name).decode()
        except UnicodeDecodeError as error:
            raise PretrainedError(f"{self.path / name}: is not UTF-8 at byte {error.start}.") from error

    def json(self, name: str) -> dict:
        """The object in a JSON file."""
        text = self.text(name)
        try:
            values = json.loads(text)
            if _is_deep([values]):
                raise RecursionError
            json.dumps(values, ensure_ascii=False).encode()  # half a character, which "\\ud800" is, cannot be written
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else printable(error)
            raise PretrainedError(f"{self.path / name}: is not JSON ({reason}).") from error
        if not isinstance(values, dict):
            raise PretrainedError(f"{self.path / name}: must hold an object, not a {type(values).__name__}.")
        return values


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [
            child
            for values in level
            for child in (values.values() if isinstance(values, dict) else values)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


class Entry(NamedTuple):
    """Where a tensor lies, and what it is."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # as the file says it: F32, F16, BF16, ...


class Tensors:
    """The tensors of a folder's safetensors files, one or several; each is read when it is asked for.

    Raises:
      PretrainedError: no such file, a malformed one, one that the index does not agree with, pickled weights.
    """

    def __init__(self, folder: Folder):
        self.entries: dict[str, Entry] = {}
        if folder.has(WEIGHTS):
            names = {WEIGHTS: None}
        elif folder.has(INDEX):
            names = _files_of_index(folder)
        else:
            raise _no_weights(folder)
        for name, expected in names.items():
            found = self._add(folder.file(name))
            if absent := (expected or set()) - found:
                raise PretrainedError(f"{folder.path / name}: lacks {listed(absent)}, which {INDEX} says are there.")

    def _add(self, path: Path) -> set[str]:
        with _opened(path) as file:
            names = set(file.keys())
            for name in names:
                tensor = file.get_slice(name)
                self.entries[name] = Entry(path, tuple(tensor.get_shape()), tensor.get_dtype())
        return names

    def read(self, name: str) -> np.ndarray:
        """One tensor. Its file is mapped anew for it and let go after it, so that no more than it is in memory."""
        with _opened(self.entries[name].file) as file:
            return file.get_tensor(name)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        reason = printable(str(error) or type(error).__name__)
        raise PretrainedError(f"{path}: is not a sound safetensors file ({reason}). Download it again.") from error


def _files_of_index(folder: Folder) -> dict[str, set[str]]:
    weight_map = folder.json(INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise PretrainedError(f"{folder.path / INDEX}: has no 'weight_map' from tensors to files.")
    files: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not name.isprintable() or not re.fullmatch(r"[^/]{1,200}\.safetensors", name):
            raise PretrainedError(f"{folder.path / INDEX}: {name!r:.80} is not the bare name of a .safetensors file.")
        if name not in files:
            folder.file(name)  # a file of the folder, or an error
        files.setdefault(name, set()).add(tensor)
    return files


def _no_weights(folder: Folder) -> PretrainedError:
    try:
        names = sorted(os.listdir(folder.path))
    except OSError as error:
        return PretrainedError(f"{folder.path}: cannot be read ({error.strerror}).")
    if pickled := [name for name in names if name.endswith(PICKLED)]:
        return PretrainedError(
            f"{folder.path}: has its weights in {printable(pickled[0])}, a pickle, which can run any program when "
            f"it is loaded, and never is here. Where you trust it, convert it with PyTorch and transformers: "
            f"AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) writes {WEIGHTS}."
        )
    return PretrainedError(f"{folder.path}: has neither {WEIGHTS} nor {INDEX}. Give a folder with a model's weights.")


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder that appears under its name when it is complete, or not at all.

    Raises:
      PretrainedError: there is something of that name already, or it cannot be written.
    """
    path = Path(path).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise PretrainedError(f"{path}: there is something already. Give a new folder, or an empty one.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise PretrainedError(f"{path}: cannot be made ({error.strerror}). Give another.") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_tensors(folder: Path, tensors: dict[str, np.ndarray], shard_bytes: int) -> None:
    """`tensors` as safetensors: one file, or several of at most `shard_bytes` (or one tensor) and their index."""
    shards: list[dict[str, np.ndarray]] = [{}]
    room = shard_bytes
    for name, tensor in tensors.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / WEIGHTS, metadata={"format": "pt"})
        return
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, metadata={"format": "pt"})
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def write_json(path: Path, values: dict) -> None:
    """A JSON file as people read it."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
