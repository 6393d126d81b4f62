"""Where text comes from: one function for each `data.source`, and the split into training and validation."""

import glob
import gzip
import os
import sysconfig
import zlib
from collections.abc import Callable
from fractions import Fraction

from train.config import DataConfig
from train.data.entropy import NUM_CHARACTERS, TRUTHS, draw_part
from transformer_jax.config import UserError, choose

ENDINGS = (".txt", ".md", ".py", ".txt.gz", ".md.gz", ".py.gz")
NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "__pycache__"}
BETWEEN = "\n\n"


def python_docs(config: DataConfig) -> str:
    """The reference texts of Python's own `help()`, about half a million characters, different in each version."""
    from pydoc_data.topics import topics  # here, because the module is as large as its text

    return BETWEEN.join(dict.fromkeys(topics[name] for name in sorted(topics)))  # aliases share a text: once is enough


def python_source(config: DataConfig) -> str:
    """The standard library's own .py files without their tests, about 12 million characters."""
    texts = []
    for file in _files_under(sysconfig.get_path("stdlib"), (".py",), NOT_LIBRARY):
        try:
            texts.append(_read(file).decode("utf-8"))
        except UnicodeDecodeError:
            continue  # Python allows other encodings; nothing but such a file is left out
    return BETWEEN.join(texts)


def text(config: DataConfig) -> str:
    """The files that `data.path` names, sorted by path, an empty line between them; one file comes back exactly.

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
        files = _files_under(path, ENDINGS)
    else:
        files = sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
    if not files:
        kinds = ", ".join(ENDINGS)
        raise UserError(
            f"data.path={config.path!r}: must name at least one file. "
            f"Give a file, a folder with some of {kinds}, or a glob in quotes, such as 'books/**/*.txt'."
        )
    return BETWEEN.join(filter(None, map(read_file, files)))


def _drawn(name: str) -> Callable[[DataConfig], str]:
    """A text of known entropy. Its two parts are drawn apart, so that the end of one says nothing of the other."""

    def make(config: DataConfig) -> str:
        lengths = [len(part) for part in split_text("." * NUM_CHARACTERS, config.val_fraction)]
        return "".join(draw_part(name, part, n) for part, n in zip(("train", "val"), lengths, strict=True))

    return make


SOURCES = {"python_docs": python_docs, "python_source": python_source, "text": text}
SOURCES |= {name: _drawn(name) for name in TRUTHS}


def load_text(config: DataConfig) -> str:
    """All text of `config.source`, as it is: no normalisation of Unicode, line ends or spaces.

    Raises:
      UserError: an unknown source, an empty text, and what the source itself refuses.
    """
    loaded = choose(SOURCES, config.source, "data.source")(config)
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


def _files_under(folder: str, endings: tuple[str, ...], left_out: frozenset | set = frozenset()) -> list[str]:
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
