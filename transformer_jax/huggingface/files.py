"""Files of a Hugging Face folder: JSON and safetensors, read as untrusted data and written.

Nothing outside the folder is opened, nothing in it is executed, and anything malformed is one PretrainedError.
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

from transformer_jax.errors import UserError, printable

MAX_TEXT_BYTES = 2**27  # of a JSON or tokenizer file; the largest in use have about 20 MB
MAX_DEPTH = 64  # of JSON; Python itself fails on deeper values in too many places to guard each
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class PretrainedError(UserError):
    """A Hugging Face folder that cannot be loaded or written; the message names the file and the problem."""


def brief(text: object) -> str:
    """Return the first 200 characters of untrusted text for use in a message."""
    return printable(str(text)[:200])


def listed(items: Iterable[str], max_items: int = 1_000) -> str:
    """Return untrusted texts, sorted, for use in a message: the first `max_items`, and the number of further ones."""
    items = sorted(items)
    more = [f"and {len(items) - max_items} more"] if len(items) > max_items else []
    return "; ".join([*map(brief, items[:max_items]), *more])


class Folder:
    """Folder whose files are opened by their bare names; links that lead out of it are refused."""

    def __init__(self, path: str | Path):
        try:
            self.path = Path(path).expanduser()
            root = self.path.resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise PretrainedError(f"{brief(path)}: no such folder ({type(error).__name__}).") from error
        if not root.is_dir():
            raise PretrainedError(f"{path}: must be a folder with config.json and {WEIGHTS}.")
        self._allowed = [root]
        if root.parent.name == "snapshots":  # the cache of huggingface_hub, whose snapshots link to files in blobs
            self._allowed.append(root.parent.parent / "blobs")

    def has(self, name: str) -> bool:
        """Return True if the folder has an entry of that name, of whatever type."""
        return os.path.lexists(self.path / name)

    def file(self, name: str) -> Path:
        """Return the path of a regular file in the folder. Raises PretrainedError for anything else."""
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
        """Read the bytes of a small file."""
        path = self.file(name)
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise PretrainedError(f"{path}: must not be larger than {MAX_TEXT_BYTES >> 20} MB.")
        try:
            return path.read_bytes()
        except OSError as error:
            raise PretrainedError(f"{path}: cannot be read ({error.strerror}).") from error

    def files_within(self, name: str, suffix: str) -> dict[str, bytes]:
        """Read the small files with a suffix in a folder of this one, by their bare names; {}: no such folder."""
        path = self.path / name
        if not path.is_dir():
            return {}
        if path.is_symlink():
            raise PretrainedError(f"{path}: is a link. Copy the folder itself.")
        within = Folder(path)
        within._allowed += self._allowed
        return {file.name: within.data(file.name) for file in sorted(path.iterdir()) if file.suffix == suffix}

    def text(self, name: str) -> str:
        """Read a small UTF-8 file."""
        try:
            return self.data(name).decode()
        except UnicodeDecodeError as error:
            raise PretrainedError(f"{self.path / name}: is not UTF-8 at byte {error.start}.") from error

    def json(self, name: str) -> dict:
        """Read the object in a JSON file."""
        text = self.text(name)
        try:
            values = json.loads(text)
            if _is_deep([values]):
                raise RecursionError
            json.dumps(values, ensure_ascii=False).encode()  # fails for a lone surrogate such as "\\ud800"
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else brief(error)
            raise PretrainedError(f"{self.path / name}: is not JSON ({reason}).") from error
        if not isinstance(values, dict):
            raise PretrainedError(f"{self.path / name}: must hold an object, not a {type(values).__name__}.")
        return values


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
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
    """Header of a tensor: its file, shape and dtype."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # in the notation of the file: F32, F16, BF16, ...


class TensorFiles:
    """The safetensors files of a folder, one or several shards; a tensor is read on request.

    Raises:
      PretrainedError: no such file, a malformed one, one that contradicts the index, pickled weights.
    """

    def __init__(self, folder: Folder, weights: str = WEIGHTS):
        self.entries: dict[str, Entry] = {}
        expected: dict[str, set[str]] = {}
        if folder.has(weights):
            expected[weights] = set()  # without an index, nothing is known in advance
        elif folder.has(INDEX):
            expected = _tensors_by_file(folder)
        else:
            raise _no_weights(folder)
        for name, tensors in expected.items():
            missing = tensors - self._add(folder.file(name))
            if missing:
                raise PretrainedError(f"{folder.path / name}: lacks {listed(missing)}, which {INDEX} lists.")

    def _add(self, path: Path) -> set[str]:
        with _opened(path) as file:
            names = set(file.keys())
            for name in names:
                tensor = file.get_slice(name)
                self.entries[name] = Entry(path, tuple(tensor.get_shape()), tensor.get_dtype())
        return names

    def read(self, name: str) -> np.ndarray:
        """Read one tensor, float64 as float32. Its file is mapped only for it, so that no other stays in memory.

        Raises:
          PretrainedError: a damaged file; a float64 value beyond float32.
        """
        with _opened(self.entries[name].file) as file:
            array = file.get_tensor(name)
        if array.dtype != np.float64:
            return array
        largest = np.abs(array).max(initial=0.0)
        if np.finfo(np.float32).max < largest < np.inf:
            raise PretrainedError(f"{self.entries[name].file}: {brief(name)} has {largest:g} in it, beyond float32.")
        return array.astype(np.float32)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        reason = brief(str(error) or type(error).__name__)
        raise PretrainedError(f"{path}: is not a sound safetensors file ({reason}). Download it again.") from error


def _tensors_by_file(folder: Folder) -> dict[str, set[str]]:
    """The index as file -> tensors, the files checked."""
    weight_map = folder.json(INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise PretrainedError(f"{folder.path / INDEX}: must have a 'weight_map' from tensors to files.")
    files: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not name.isprintable() or not re.fullmatch(r"[^/]{1,200}\.safetensors", name):
            raise PretrainedError(f"{folder.path / INDEX}: {name!r:.80} is not the bare name of a .safetensors file.")
        if name not in files:
            folder.file(name)  # raises unless it is a file of the folder
        files.setdefault(name, set()).add(tensor)
    return files


def _no_weights(folder: Folder) -> PretrainedError:
    try:
        names = sorted(os.listdir(folder.path))
    except OSError as error:
        return PretrainedError(f"{folder.path}: cannot be read ({error.strerror}).")
    if pickled := [name for name in names if name.endswith(PICKLE_SUFFIXES)]:
        return PretrainedError(
            f"{folder.path}: has its weights in {brief(pickled[0])}, a pickle, which can run any program when "
            f"it is loaded and is never loaded here. If you trust it, convert it with PyTorch and transformers: "
            f"AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) writes {WEIGHTS}."
        )
    return PretrainedError(f"{folder.path}: has neither {WEIGHTS} nor {INDEX}. Give a folder with the model's weights.")


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Create a folder atomically: it appears under its name when the block ends without an error.

    Raises:
      PretrainedError: the path exists already, or cannot be written.
    """
    path = Path(path).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise PretrainedError(f"{path}: exists already. Give a new folder, or an empty one.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise PretrainedError(f"{path}: cannot be created ({error.strerror}). Give another folder.") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_tensors(folder: Path, tensors: dict[str, np.ndarray], shard_bytes: int) -> None:
    """Write tensors as safetensors: one file, or shards of at most `shard_bytes` (or one tensor) and their index."""
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
    """Write an indented JSON file."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
