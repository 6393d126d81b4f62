"""Where text comes from: one function for each `data.source`, and the split into training and validation."""

import glob
import gzip
import os
import sysconfig
import zlib
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from transformer_jax.errors import UserError, choose

from ..config import DataConfig
from .entropy import NUM_CHARACTERS, TRUTHS, draw_part
from .from_tfds import tfds_documents

ENDINGS = (".txt", ".md", ".py", ".txt.gz", ".md.gz", ".py.gz")
NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "__pycache__"}
BETWEEN = "\n\n"


def python_docs(config: DataConfig) -> list[str]:
    """The reference texts of Python's own `help()`, about half a million characters, different in each version."""
    from pydoc_data.topics import topics  # here, because the module is as large as its text

    return list(dict.fromkeys(topics[name] for name in sorted(topics)))  # aliases share a text: once is enough


def python_source(config: DataConfig) -> list[str]:
    """The standard library's own .py files without their tests, about 12 million characters."""
    texts = []
    for file in files_under(sysconfig.get_path("stdlib"), (".py",), NOT_LIBRARY):
        try:
            texts.append(_read(file).decode("utf-8"))
        except UnicodeDecodeError:
            continue  # Python allows other encodings; nothing but such a file is left out
    return texts


def text(config: DataConfig) -> list[str]:
    """The files that `data.path` names, sorted by path.

    The path is a file, a folder (everything below it that ends in .txt, .md or .py, or these with .gz, except what is
    hidden) or a glob, in which ** stands for any depth. Files ending in .gz are decompressed.

    Raises:
      UserError: no path, or none that names a file; a file that cannot be read, is a damaged .gz or not UTF-8.
    """
    if not config.path:
        raise UserError("data.path='': data.source=text needs to know where. Give a file, a folder or a glob.")
    path = os.path.expanduser(config.path)
    if os.path.isfile(path):
        files = [path]
    elif os.path.isdir(path):
        files = files_under(path, ENDINGS)
    else:
        files = sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
    if not files:
        kinds = ", ".join(ENDINGS)
        raise UserError(
            f"data.path={config.path!r}: must name at least one file. "
            f"Give a file, a folder with some of {kinds}, or a glob in quotes, such as 'books/**/*.txt'."
        )
    return list(filter(None, map(read_file, files)))


def _drawn(name: str) -> Callable[[DataConfig], list[str]]:
    """A text of known entropy. Its two parts are drawn apart, so that the end of one says nothing of the other."""

    def make(config: DataConfig) -> list[str]:
        lengths = [len(part) for part in split_text("." * NUM_CHARACTERS, config.val_fraction)]
        return ["".join(draw_part(name, part, n) for part, n in zip(("train", "val"), lengths, strict=True))]

    return make


SOURCES = {"python_docs": python_docs, "python_source": python_source, "text": text}
SOURCES |= {name: _drawn(name) for name in TRUTHS}


def load_parts(config: DataConfig) -> tuple[str, str]:
    """The text to train on and that to validate on. Raises UserError as `load_text` and `split_text` do."""
    if config.source == "tfds":  # which has parts of its own
        return tuple(map(BETWEEN.join, tfds_documents(config)))
    return split_text(load_text(config), config.val_fraction)


def load_documents(config: DataConfig) -> tuple[list[str], list[str]]:
    """Texts that are read each by itself, to train on and to validate on; the latter are a random share.

    Raises:
      UserError: fewer than two documents, and what the source refuses.
    """
    if config.source == "tfds":
        return tfds_documents(config)
    documents = choose(SOURCES, config.source, "data.source")(config)
    if config.documents == "lines":
        documents = [line for document in documents for line in document.splitlines() if line.strip()]
    if len(documents) < 2:
        what = "lines" if config.documents == "lines" else "files"
        raise UserError(
            f"data.documents={config.documents!r}: there are fewer than two {what}, one to train on and one to "
            "validate on. Give more, or take data.documents=''."
        )
    order = np.random.default_rng(0).permutation(len(documents))
    num_val = max(1, round(len(documents) * config.val_fraction))
    return tuple([documents[i] for i in sorted(part)] for part in (order[num_val:], order[:num_val]))


def load_text(config: DataConfig) -> str:
    """All text of `config.source`, as it is: no normalisation of Unicode, line ends or spaces.

    An empty line stands between files; one file comes back exactly.

    Raises:
      UserError: an unknown source, an empty text, and what the source itself refuses.
    """
    loaded = BETWEEN.join(choose(SOURCES, config.source, "data.source")(config))
    if not loaded:
        where = f", data.path={config.path!r}" if config.source == "text" else ""
        raise UserError(f"data.source={config.source!r}{where}: must not be empty. Give a text with characters in it.")
    return loaded


def split_text(text: str, val_fraction: float) -> tuple[str, str]:
    """(training part, validation part): the first and the last characters, which never overlap.

    The training part has `int(len(text) * (1 - val_fraction))` characters, reckoned in decimals: 1 - 0.9 is a little
    less than 0.1 in floating point, and would cost ten characters their one.

    Raises:
      UserError: a part would be empty.
    """
    num_train = int(len(text) * (1 - Fraction(str(val_fraction))))
    if not 0 < num_train < len(text):
        empty = "training" if num_train == 0 else "validation"
        raise UserError(
            f"data.val_fraction={val_fraction}: leaves no {empty} text of {len(text)} characters. "
            "Take a value nearer to 0.5, or more text."
        )
    return text[:num_train], text[num_train:]


def files_under(folder: str, endings: tuple[str, ...], left_out: frozenset | set = frozenset()) -> list[str]:
    """Files below `folder` with these endings, sorted; not what is hidden, nor folders named in `left_out`."""
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in left_out and not name.startswith(".")]
        files += [os.path.join(parent, n) for n in names if n.endswith(endings) and not n.startswith(".")]
    return sorted(files)


def _read(file: str) -> bytes:
    try:
        with (gzip.open if file.endswith(".gz") else open)(file, "rb") as stream:
            return stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"data.path: {file!r} cannot be read: {error}. Mend or remove the file.") from error


def read_file(file: str) -> str:
    """The text of a file, .gz too. Raises UserError: it cannot be read, is a damaged .gz or not UTF-8."""
    data = _read(file)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"data.path: {file!r} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}. "
            "Convert the file to UTF-8, or leave it out."
        ) from error
