"""Sources of running text: one function per `data.source`, and the split into training and validation.

A source gives its documents in order, and each document in pieces, so that no document need fit into memory.
"""

import dataclasses
import functools
import glob
import hashlib
import itertools
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import TypeVar

import numpy as np

from transformer_jax.errors import UserError, choose
from transformer_jax.lines import decode_pieces, read_bytes, read_pieces, split_lines

from ..config import DataConfig
from .entropy import NUM_CHARACTERS, TRUTHS, draw_part
from .from_tfds import tfds_documents
from .progress import Progress

T = TypeVar("T")
ENDINGS = (".txt", ".md", ".py", ".txt.gz", ".md.gz", ".py.gz")
EXCLUDED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "__pycache__"}  # of the standard library
FILE_SEPARATOR = "\n\n"
PIECE_CHARS = 2**20  # of a running text that is read in pieces
IN_MEMORY_CHARS = 2**25  # longer texts are read again at each pass, and their tokens kept in a file


def python_docs(config: DataConfig) -> Iterator[Iterable[str]]:
    """Load the texts of Python's own `help()`: about half a million characters, different in each version."""
    from pydoc_data.topics import topics  # here, because the module is as large as its text

    for topic in dict.fromkeys(topics[name] for name in sorted(topics)):  # aliases share a text: keep one
        yield [topic]


def python_source(config: DataConfig) -> Iterator[Iterable[str]]:
    """Load the standard library's .py files without tests: about 12 million characters."""
    for file in files_under(sysconfig.get_path("stdlib"), (".py",), EXCLUDED_FOLDERS):
        try:
            document = read_bytes(file).decode("utf-8")
        except UnicodeDecodeError:
            continue  # Python allows other encodings; only such files are skipped
        yield [document]


def text(config: DataConfig) -> Iterator[Iterable[str]]:
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
    for file in files:
        pieces = decode_pieces(read_pieces(file), file)
        first = next(pieces, "")
        if first:  # an empty file is no document
            yield itertools.chain([first], pieces)


def _drawn(name: str) -> Callable[[DataConfig], Iterator[Iterable[str]]]:
    """Source of known entropy. Its two splits are drawn separately: the end of one does not predict the other."""

    def make(config: DataConfig) -> Iterator[Iterable[str]]:
        num_train = num_train_chars(NUM_CHARACTERS, config.val_fraction)
        yield [draw_part(name, "train", num_train), draw_part(name, "val", NUM_CHARACTERS - num_train)]

    return make


SOURCES: dict[str, Callable[[DataConfig], Iterator[Iterable[str]]]] = {
    "python_docs": python_docs,
    "python_source": python_source,
    "text": text,
}
SOURCES |= {name: _drawn(name) for name in TRUTHS}


@dataclasses.dataclass(frozen=True, eq=False)
class RunningText:
    """Running text that is read in pieces: its first characters are for training, the others for validation.

    A text of more than IN_MEMORY_CHARS characters is read again at each pass.
    """

    pieces: Callable[[], Iterable[str]]  # of the whole text, in order
    num_chars: int
    num_train: int  # characters of the training split
    sha256: str  # of its UTF-8: equal if the text is

    @property
    def is_in_memory(self) -> bool:
        """True if all its pieces are kept in memory."""
        return self.num_chars <= IN_MEMORY_CHARS

    def splits(self) -> tuple[Iterator[str], Iterator[str]]:
        """The pieces of the training and of the validation split, in one pass: read the first to its end before."""
        pieces = iter(self.pieces())
        rest: list[str] = []  # of the piece that both splits share

        def train() -> Iterator[str]:
            num_missing = self.num_train
            while num_missing > 0 and (piece := next(pieces, "")):
                yield piece[:num_missing]
                rest[:] = [piece[num_missing:]]
                num_missing -= len(piece)

        return train(), filter(None, itertools.chain(rest, pieces))


def load_text(config: DataConfig) -> RunningText:
    """Read the running text of `config.source` once, as `lines.decode` does: no normalization of Unicode or spaces.

    An empty line separates files.

    Raises:
      UserError: an unknown source, an empty text, an error of the source; a split would be empty.
    """
    num_train = None
    if config.source == "tfds":  # which has its own splits, and is read at once
        train, validation = map(FILE_SEPARATOR.join, tfds_documents(config))
        texts: Callable[[], Iterator[str]] = functools.partial(iter, (train, validation))
        num_train = len(train)
    else:
        texts = functools.partial(_documents_with_separators, config)
    kept: list[str] = []
    num_chars = 0
    digest = hashlib.sha256()
    with Progress("reading the text", None) as progress:
        for piece in _in_pieces(texts()):
            num_chars += len(piece)
            digest.update(utf8(piece))
            if num_chars <= IN_MEMORY_CHARS:
                kept.append(piece)
            else:
                kept.clear()
                progress.advance(len(piece))
    if not num_chars:
        where = f", data.path={config.path!r}" if config.source == "text" else ""
        raise UserError(f"data.source={config.source!r}{where}: must not be empty. Give a text with characters in it.")
    if num_train is None:
        num_train = num_train_chars(num_chars, config.val_fraction)

    def pieces() -> Iterable[str]:
        return kept or _in_pieces(texts())

    return RunningText(pieces, num_chars, num_train, digest.hexdigest())


def _documents_with_separators(config: DataConfig) -> Iterator[str]:
    for i, document in enumerate(choose(SOURCES, config.source, "data.source")(config)):
        if i:
            yield FILE_SEPARATOR
        yield from document


def _in_pieces(texts: Iterable[str]) -> Iterator[str]:
    """Cut a text that comes in parts of any length into pieces of PIECE_CHARS characters; the last one is shorter."""
    waiting: list[str] = []
    num_waiting = 0
    for text in texts:
        waiting.append(text)
        num_waiting += len(text)
        if num_waiting >= PIECE_CHARS:
            joined = "".join(waiting)
            end = num_waiting // PIECE_CHARS * PIECE_CHARS
            yield from (joined[i : i + PIECE_CHARS] for i in range(0, end, PIECE_CHARS))
            waiting = [joined[end:]]
            num_waiting -= end
    if num_waiting:
        yield "".join(waiting)


def load_documents(config: DataConfig) -> tuple[list[str], list[str]]:
    """Load separate documents for training and for validation; the latter are a random share.

    Raises:
      UserError: fewer than two documents; an error of the source.
    """
    if config.source == "tfds":
        return tfds_documents(config)
    documents = ["".join(document) for document in choose(SOURCES, config.source, "data.source")(config)]
    if config.documents == "lines":
        documents = [line for document in documents for line in split_lines(document) if line.strip()]
    if len(documents) < 2:
        unit = "lines" if config.documents == "lines" else "files"
        raise UserError(
            f"data.documents={config.documents!r}: there are fewer than two {unit}, one to train on and one to "
            "validate on. Give more, or take data.documents=''."
        )
    return split_examples(documents, config.val_fraction)


def split_examples(examples: Sequence[T], val_fraction: float) -> tuple[list[T], list[T]]:
    """Split examples into those for training and a random share, at least one, for validation; both keep their order.

    At random, because files are often sorted.
    """
    order = np.random.default_rng(0).permutation(len(examples))
    num_val = max(1, round(len(examples) * val_fraction))
    train, validation = ([examples[i] for i in sorted(part)] for part in (order[num_val:], order[:num_val]))
    return train, validation


def num_train_chars(num_chars: int, val_fraction: float) -> int:
    """Number of characters of the training split, the first ones of a text; the others are for validation.

    It is `int(num_chars * (1 - val_fraction))`, computed exactly: in floating point 1 - 0.9 is a little less than 0.1,
    so that one tenth of ten characters would be none.

    Raises:
      UserError: a split would be empty.
    """
    num_train = int(num_chars * (1 - Fraction(str(val_fraction))))
    if not 0 < num_train < num_chars:
        empty = "training" if num_train == 0 else "validation"
        raise UserError(
            f"data.val_fraction={val_fraction}: leaves no {empty} text of {num_chars} characters. "
            "Take a value nearer to 0.5, or more text."
        )
    return num_train


def utf8(text: str) -> bytes:
    """UTF-8 bytes of a text; a lone surrogate becomes three."""
    return text.encode("utf-8", "surrogatepass")


def files_under(folder: str, endings: tuple[str, ...], excluded_folders: frozenset | set = frozenset()) -> list[str]:
    """List the regular files below `folder` with these endings, sorted; skip hidden ones and excluded folders."""
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in excluded_folders and not name.startswith(".")]
        files += [os.path.join(parent, n) for n in names if n.endswith(endings) and not n.startswith(".")]
    # A FIFO would wait for a writer. A link to nothing stays, for the error when it is read.
    return sorted(file for file in files if os.path.isfile(file) or not os.path.exists(file))
