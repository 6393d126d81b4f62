"""Sources of running text: one function per `data.source`, and the split into training and validation."""

import glob
import os
import sysconfig
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from transformer_jax.errors import UserError, choose
from transformer_jax.lines import read_bytes, read_file, split_lines

from ..config import DataConfig
from .entropy import NUM_CHARACTERS, TRUTHS, draw_part
from .from_tfds import tfds_documents

ENDINGS = (".txt", ".md", ".py", ".txt.gz", ".md.gz", ".py.gz")
EXCLUDED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "__pycache__"}  # of the standard library
FILE_SEPARATOR = "\n\n"


def python_docs(config: DataConfig) -> list[str]:
    """Load the texts of Python's own `help()`: about half a million characters, different in each version."""
    from pydoc_data.topics import topics  # here, because the module is as large as its text

    return list(dict.fromkeys(topics[name] for name in sorted(topics)))  # aliases share a text: keep one


def python_source(config: DataConfig) -> list[str]:
    """Load the standard library's .py files without tests: about 12 million characters."""
    texts = []
    for file in files_under(sysconfig.get_path("stdlib"), (".py",), EXCLUDED_FOLDERS):
        try:
            texts.append(read_bytes(file).decode("utf-8"))
        except UnicodeDecodeError:
            continue  # Python allows other encodings; only such files are skipped
    return texts


def text(config: DataConfig) -> list[str]:
    """Load the text files that `data.path` names, sorted by path.

    The path is a file, a folder (all files below it that end in .txt, .md or .py, or these with .gz, except hidden
    ones) or a glob, in which ** stands for any depth. Files ending in .gz are decompressed.

    Raises:
      UserError: no path, or one that matches no file; a file that cannot be read, is a damaged .gz or not UTF-8.
    """
    if not config.path:
        raise UserError("data.path='': data.source=text needs a path. Give a file, a folder or a glob.")
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
    """Source of known entropy. Its two splits are drawn separately: the end of one does not predict the other."""

    def make(config: DataConfig) -> list[str]:
        lengths = [len(part) for part in split_text("." * NUM_CHARACTERS, config.val_fraction)]
        return ["".join(draw_part(name, part, n) for part, n in zip(("train", "val"), lengths, strict=True))]

    return make


SOURCES: dict[str, Callable[[DataConfig], list[str]]] = {
    "python_docs": python_docs,
    "python_source": python_source,
    "text": text,
}
SOURCES |= {name: _drawn(name) for name in TRUTHS}


def load_parts(config: DataConfig) -> tuple[str, str]:
    """Load the training and the validation text. Raises UserError as `load_text` and `split_text` do."""
    if config.source == "tfds":  # which has its own splits
        train, validation = tfds_documents(config)
        return FILE_SEPARATOR.join(train), FILE_SEPARATOR.join(validation)
    return split_text(load_text(config), config.val_fraction)


def load_documents(config: DataConfig) -> tuple[list[str], list[str]]:
    """Load separate documents for training and for validation; the latter are a random share.

    Raises:
      UserError: fewer than two documents; an error of the source.
    """
    if config.source == "tfds":
        return tfds_documents(config)
    documents = choose(SOURCES, config.source, "data.source")(config)
    if config.documents == "lines":
        documents = [line for document in documents for line in split_lines(document) if line.strip()]
    if len(documents) < 2:
        unit = "lines" if config.documents == "lines" else "files"
        raise UserError(
            f"data.documents={config.documents!r}: there are fewer than two {unit}, one to train on and one to "
            "validate on. Give more, or take data.documents=''."
        )
    order = np.random.default_rng(0).permutation(len(documents))
    num_val = max(1, round(len(documents) * config.val_fraction))
    train, validation = ([documents[i] for i in sorted(part)] for part in (order[num_val:], order[:num_val]))
    return train, validation


def load_text(config: DataConfig) -> str:
    """Load all text of `config.source`, as `lines.decode` reads it: no normalization of Unicode or spaces.

    An empty line separates files.

    Raises:
      UserError: an unknown source, an empty text, an error of the source.
    """
    loaded = FILE_SEPARATOR.join(choose(SOURCES, config.source, "data.source")(config))
    if not loaded:
        where = f", data.path={config.path!r}" if config.source == "text" else ""
        raise UserError(f"data.source={config.source!r}{where}: must not be empty. Give a text with characters in it.")
    return loaded


def split_text(text: str, val_fraction: float) -> tuple[str, str]:
    """Split a text into (training, validation): its first and its last characters, without overlap.

    Training gets `int(len(text) * (1 - val_fraction))` characters, computed exactly: in floating point 1 - 0.9 is a
    little less than 0.1, so that one tenth of ten characters would be none.

    Raises:
      UserError: a split would be empty.
    """
    num_train = int(len(text) * (1 - Fraction(str(val_fraction))))
    if not 0 < num_train < len(text):
        empty = "training" if num_train == 0 else "validation"
        raise UserError(
            f"data.val_fraction={val_fraction}: leaves no {empty} text of {len(text)} characters. "
            "Take a value nearer to 0.5, or more text."
        )
    return text[:num_train], text[num_train:]


def files_under(folder: str, endings: tuple[str, ...], excluded_folders: frozenset | set = frozenset()) -> list[str]:
    """List the regular files below `folder` with these endings, sorted; skip hidden ones and excluded folders."""
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in excluded_folders and not name.startswith(".")]
        files += [os.path.join(parent, n) for n in names if n.endswith(endings) and not n.startswith(".")]
    # A FIFO would wait for a writer. A link to nothing stays, for the error when it is read.
    return sorted(file for file in files if os.path.isfile(file) or not os.path.exists(file))
