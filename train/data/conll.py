"""CoNLL and CoNLL-U files: sentences of words with a tag each; comments, columns and lines that are no words.

CoNLL is a word a line with its tag in the last column, and an empty line after each sentence. It has no standard, so
these are the rules here.

- Columns end at tabs in a file whose words have tabs, else at spaces. All words have the same number of columns.
- A line "-DOCSTART-" with any columns is no word, and ends a sentence.
- A comment is a line that begins with # where a sentence begins, and does not fit the words: it has another number of
  columns, or no tag in the last one. So "# id 7c2 domain=en" is a comment and "# O" or "#sale O" is a word. In a file
  whose tags are not O, B-x, I-x and so on, a tag that no other word has could be one: such a line is refused, unless it
  has a "=", as in "# id=7".

CoNLL-U (https://universaldependencies.org/format.html) has ten columns; comments, multi-word tokens (3-4) and empty
nodes (4.1) are no words.
"""

import re
from typing import NamedTuple

from transformer_jax.errors import UserError
from transformer_jax.lines import split_lines

from ..entities import PREFIXES

CONLLU_COLUMNS = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
MAY_BE_EMPTY = ("feats", "deps", "misc")  # where _ is a value: there are none
COLUMN_NAMES = ("word", "words", "token", "tokens", "form", "text")  # of the words, in a header
ENTITY_TAG = re.compile(f"O|[{''.join(PREFIXES)}]-.+")


class Line(NamedTuple):
    """A line of a file: its number and its columns; none for an empty line."""

    number: int
    cells: list[str]


Words = tuple[list[str], list[str], int]  # words, tags, and the number of the first line


def read_conllu(path: str, text: str, field: str) -> list[Words]:
    """Read the sentences of a CoNLL-U file, with the column `field` as tags.

    Raises:
      UserError: a line that has not ten columns or no id; a word without a tag. File and line are named.
    """
    sentences = []
    column = CONLLU_COLUMNS.index(field)
    for lines in _sentences([line for line in _lines(text, False) if not _starts(line, "#")]):
        words = []
        for number, cells in lines:
            where = f"{path}, line {number}"
            if len(cells) != len(CONLLU_COLUMNS):
                raise UserError(f"{where}: has {len(cells)} columns, and needs {len(CONLLU_COLUMNS)}. Fix the line.")
            if not re.fullmatch(r"\d+([-.]\d+)?", cells[0], re.ASCII):
                raise UserError(f"{where}: id {cells[0]!r:.80} must be a number such as 3, 3-4 or 3.1. Fix the line.")
            if not cells[0].isdecimal():
                continue  # a multi-word token, or an empty node: the words have their own lines
            if cells[column] in ("", "_") and field not in MAY_BE_EMPTY:
                raise UserError(f"{where}: has no {field}. Fill it in, or take another column as data.label_field.")
            words.append((_word(cells[1], where), cells[column], number))
        if words:
            sentences.append(_sentence(words))
    return sentences


def read_conll(path: str, text: str) -> list[Words]:
    """Read the sentences of a CoNLL file, by the rules of this module.

    Raises:
      UserError: a line with another number of columns, without a word or a tag; one that may be a comment or a word; a
        first column that counts the words. File and line are named.
    """
    lines = _lines(text, _has_tabs(text))
    lines = [Line(line.number, []) if _starts(line, "-DOCSTART-") else line for line in lines]
    plain = [cells for line in lines if (cells := line.cells) and not _starts(line, "#")]
    tags = {cells[-1] for cells in plain}
    width = len(plain[0]) if plain else 2
    sentences = []
    for block in _sentences(lines):
        while block and _starts(block[0], "#") and _is_comment(path, block[0], width, tags):
            block = block[1:]
        words = []
        for number, cells in block:
            where = f"{path}, line {number}"
            if len(cells) != max(width, 2):
                raise UserError(f"{where}: has {len(cells)} columns, and needs {max(width, 2)}. Fix the line.")
            if not cells[-1]:
                raise UserError(f"{where}: the tag, in the last column, is empty. Fix the line.")
            words.append((_word(cells[0], where), cells[-1], number))
        if words:
            sentences.append(_sentence(words))
    _check_first_column(path, sentences)
    _check_no_header(path, sentences)
    return sentences


def _is_comment(path: str, line: Line, width: int, tags: set[str]) -> bool:
    """True for a comment, False for a word, of a line that begins with # where a sentence begins.

    Args:
      width, tags: of the words that do not begin with #.
    Raises:
      UserError: it could be either.
    """
    number, cells = line
    if len(cells) != width:
        return True
    if cells[-1] in tags or ENTITY_TAG.fullmatch(cells[-1]):
        return False
    if "=" in cells[-1] or (tags and all(map(ENTITY_TAG.fullmatch, tags))):
        return True
    raise UserError(
        f"{path}, line {number}: begins with '#', and could be a comment, or a word with the tag {cells[-1]!r:.80}, "
        "which no other word has. Remove the line."
    )


def _check_first_column(path: str, sentences: list[Words]) -> None:
    """Refuse words that are the numbers 1, 2, 3, ... (or 0, 1, 2) of every sentence."""
    for first in ("0", "1"):
        counted = [words == [str(int(first) + i) for i in range(len(words))] for words, _, _ in sentences]
        if sentences and all(counted) and max(len(words) for words, _, _ in sentences) > 1:
            raise UserError(
                f"{path}: the first column counts the words of each sentence ({first}, {int(first) + 1}, ...), and "
                "must be the word. Remove it, for example with: cut -f2-"
            )


def _check_no_header(path: str, sentences: list[Words]) -> None:
    """Refuse a first word that is the name of its column, over a tag that no other word has."""
    if not sentences:
        return
    words, tags, number = sentences[0]
    if words[0].casefold() in COLUMN_NAMES and sum(other.count(tags[0]) for _, other, _ in sentences) == 1:
        raise UserError(
            f"{path}, line {number}: looks like a header ({words[0]}, {tags[0]}), and would be read as a word. Remove "
            "the line."
        )


def _has_tabs(text: str) -> bool:
    """True if most of the lines that do not begin with # have a tab."""
    plain = [line for line in split_lines(text) if line.strip() and not line.startswith("#")]
    return 2 * sum("\t" in line for line in plain) > len(plain)


def _lines(text: str, has_tabs: bool) -> list[Line]:
    """Lines with their columns; an empty line has none, and so has one more at the end."""
    return [Line(number, _cells(line, has_tabs)) for number, line in enumerate([*split_lines(text), ""], 1)]


def _cells(line: str, has_tabs: bool) -> list[str]:
    """Columns of a line, without spaces around them."""
    if not line.strip():
        return []
    if has_tabs or "\t" in line:
        return [cell.strip(" ") for cell in line.split("\t")]
    return [cell for cell in line.split(" ") if cell]


def _sentences(lines: list[Line]) -> list[list[Line]]:
    """Lines between empty ones."""
    blocks: list[list[Line]] = [[]]
    for line in lines:
        if line.cells:
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return [block for block in blocks if block]


def _starts(line: Line, sign: str) -> bool:
    """True if a line begins with "#", or with another sign and a space."""
    return bool(line.cells) and (line.cells[0].startswith("#") if sign == "#" else line.cells[0].split(" ")[0] == sign)


def _word(cell: str, where: str) -> str:
    if not cell:
        raise UserError(f"{where}: the word is empty. Fix the line.")
    return cell


def _sentence(words: list[tuple[str, str, int]]) -> Words:
    return [word for word, _, _ in words], [tag for _, tag, _ in words], words[0][2]
