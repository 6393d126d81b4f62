"""What each character of Python code is, as `tokenize` says: keyword, name, number, text, comment, operator, space.

A small task of tagging that needs no download: the code is the standard library's own, so it differs between versions.
"""

import io
import keyword
import sysconfig
import token
import tokenize

import numpy as np

from .sources import NOT_LIBRARY, files_under

SIZES = {"train": 8_000, "val": 400, "test": 400}
LENGTH = 200  # characters of an example, at most, in whole lines
KINDS = {token.NUMBER: "number", token.STRING: "string", tokenize.COMMENT: "comment", token.OP: "operator"}


def python_tokens(config, split: str) -> list[tuple[list[str], list[str], str]]:
    """(characters, their tags, file and line) of a part, train, val or test. A file is in one part only."""
    files = files_under(sysconfig.get_path("stdlib"), (".py",), NOT_LIBRARY)
    files = [files[i] for i in np.random.default_rng(0).permutation(len(files))]
    tenth = len(files) // 10
    part = {"val": files[:tenth], "test": files[tenth : 2 * tenth], "train": files[2 * tenth :]}[split]
    examples = []
    for file in part:
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
    """The tag of each character. Raises SyntaxError or TokenError where `tokenize` does."""
    starts = np.cumsum([0, *map(len, code.splitlines(keepends=True))])
    tags = ["space"] * len(code)
    for piece in tokenize.generate_tokens(io.StringIO(code).readline):
        if piece.type == token.NAME:
            kind = "keyword" if keyword.iskeyword(piece.string) else "name"
        else:
            # From Python 3.12 on an f-string is many pieces; what stands between its braces is code.
            kind = "string" if token.tok_name[piece.type].startswith(("FSTRING", "TSTRING")) else KINDS.get(piece.type)
        if kind:
            first, last = (starts[line - 1] + column for line, column in (piece.start, piece.end))
            tags[first:last] = [kind] * (last - first)
    return tags


def _examples(code: str, tags: list[str], file: str) -> list[tuple[list[str], list[str], str]]:
    examples, first, number, first_number, end = [], 0, 1, 1, 0
    for line in [*code.splitlines(keepends=True), ""]:
        if end > first and (end + len(line) - first > LENGTH or not line):
            examples.append((list(code[first:end]), tags[first:end], f"{file}, line {first_number}"))
            first, first_number = end, number
        end, number = end + len(line), number + 1
    return [example for example in examples if len(example[0]) <= LENGTH]
