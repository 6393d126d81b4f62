"""Generated tagging examples: characters of Python code, tagged by `tokenize` as keyword, name, number, string ...

A small tagging task without a download: the code is the standard library's own, so it differs between versions.
"""

import io
import keyword
import sysconfig
import token
import tokenize

import numpy as np

from ..config import DataConfig
from .sources import EXCLUDED_FOLDERS, files_under

SIZES = {"train": 8_000, "val": 400, "test": 400}
MAX_CHARACTERS = 200  # of an example, which is whole lines
KINDS = {token.NUMBER: "number", token.STRING: "string", tokenize.COMMENT: "comment", token.OP: "operator"}


def python_tokens(config: DataConfig | None, split: str) -> list[tuple[list[str], list[str], str]]:
    """Generate (characters, tags, file and line) of a split: train, val or test. A file is in one split only."""
    files = files_under(sysconfig.get_path("stdlib"), (".py",), EXCLUDED_FOLDERS)
    files = [files[i] for i in np.random.default_rng(0).permutation(len(files))]
    tenth = len(files) // 10
    files_of = {"val": files[:tenth], "test": files[tenth : 2 * tenth], "train": files[2 * tenth :]}
    examples = []
    for file in files_of[split]:
        try:
            with tokenize.open(file) as stream:
                code = stream.read()
            tags = tags_of(code)
        except (SyntaxError, UnicodeDecodeError, tokenize.TokenError):
            continue  # files that are wrong on purpose
        examples += _examples(code, tags, file)
        if len(examples) >= SIZES[split]:
            break
    return examples[: SIZES[split]]


def tags_of(code: str) -> list[str]:
    """Tag each character of code. Raises SyntaxError or TokenError where `tokenize` does."""
    starts = np.cumsum([0, *map(len, io.StringIO(code))])
    tags = ["space"] * len(code)
    for piece in tokenize.generate_tokens(io.StringIO(code).readline):
        kind: str | None
        if piece.type == token.NAME:
            kind = "keyword" if keyword.iskeyword(piece.string) else "name"
        else:
            # From Python 3.12 on, an f-string is many pieces; the text between its braces is code.
            kind = "string" if token.tok_name[piece.type].startswith(("FSTRING", "TSTRING")) else KINDS.get(piece.type)
        if kind:
            first, last = (starts[line - 1] + column for line, column in (piece.start, piece.end))
            tags[first:last] = [kind] * (last - first)
    return tags


def _examples(code: str, tags: list[str], file: str) -> list[tuple[list[str], list[str], str]]:
    """Group whole lines of a file into examples of at most MAX_CHARACTERS; a longer line is skipped."""
    examples = []
    first = 0  # index of the example's first character
    first_line = 1
    end = 0
    for number, line in enumerate([*io.StringIO(code), ""], 1):
        if end > first and (end + len(line) - first > MAX_CHARACTERS or not line):
            examples.append((list(code[first:end]), tags[first:end], f"{file}, line {first_line}"))
            first = end
            first_line = number
        end += len(line)
    return [example for example in examples if len(example[0]) <= MAX_CHARACTERS]
