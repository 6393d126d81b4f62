"""Checks of a table of labelled texts: a header that no setting marks, and columns in another order.

Read as they stand, both train without an error: a header is one more example, a label is the text.
"""

import re
from collections import Counter
from collections.abc import Sequence

from transformer_jax.errors import UserError, printable

Table = Sequence[tuple[list[str], str]]  # the cells of each row, and its location: "file, line n"

# Names of columns in the headers of public data sets. Of one kind: the other cells may have any name.
TEXT_NAMES = frozenset(
    "text texts sentence sentences sentence1 sentence2 review review_text reviews message messages sms tweet tweets "
    "comment comments comment_text content contents document documents body title question query utterance premise "
    "hypothesis description headline input post source src src_text target_text".split()
)
LABEL_NAMES = frozenset(
    "label labels label_text class classes category categories sentiment target targets score scores rating ratings "
    "stars topic intent tag polarity airline_sentiment emotion is_spam v1".split()
)
SIDE_NAMES = frozenset(
    "source target src tgt trg src_text tgt_text input output source_text target_text question answer "
    "english german french spanish en de fr es it nl pt ru zh ja ko ar cs pl".split()
)
DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
MANY = 4  # rows, from which on columns can be compared


def is_number(text: str) -> bool:
    """True for a decimal number in ASCII digits, such as 3, -0.5 or 1e-3, with spaces around it."""
    return DECIMAL.fullmatch(text.strip()) is not None


def check_no_header(rows: Table, text_column: int, label_column: int) -> None:
    """Refuse a first row that is a header: it would be an example, and its label a class.

    A header has a usual name of a label's column over labels that it is none of, or a word over nothing but numbers.

    Raises:
      UserError: names the line and the settings that read its columns by name.
    """
    (first, where), rest = rows[0], rows[1:]
    names = [_name(cell) for cell in first]
    label = names[label_column]
    below = [row[label_column] for row, _ in rest]
    if not rest or not label or label in map(_name, below):
        return
    has_known_names = any(name in TEXT_NAMES for name in names) and any(name in LABEL_NAMES for name in names)
    is_label_name = label in LABEL_NAMES and len(first[text_column].split()) <= 1
    is_over_numbers = len(rest) >= 2 and not is_number(first[label_column]) and all(map(is_number, below))
    if not (has_known_names or is_label_name or is_over_numbers):
        return
    named_cells = list(zip(first, names, strict=True))
    text_field = next((cell for cell, name in named_cells if name in TEXT_NAMES), first[text_column])
    label_field = next((cell for cell, name in named_cells if name in LABEL_NAMES), first[label_column])
    raise UserError(
        f"{where}: looks like a header ({printable(', '.join(first)):.200}), and would be read as an example. Set "
        f"data.text_field={text_field!r:.80} and data.label_field={label_field!r:.80}, or remove the line. "
        "(A first line that is an example: move it down.)"
    )


def check_order(rows: Table, text_column: int, label_column: int) -> None:
    """Refuse a table whose first column holds labels and whose last one texts, or whose first one numbers its lines.

    Labels are repeated, and texts are not.

    Raises:
      UserError: says which column looks like which.
    """
    if len(rows) < MANY:
        return
    texts, labels = ([row[column].strip() for row, _ in rows] for column in (text_column, label_column))
    path = rows[0][1].rpartition(", line")[0]
    fix = "Swap the columns, or give them a header and set data.text_field and data.label_field to their names."
    num_texts, num_labels = len(set(texts)), len(set(labels))
    if num_texts <= len(rows) / 2 < num_labels and not all(map(is_number, labels)):
        common = ", ".join(text for text, _ in Counter(texts).most_common(3))
        raise UserError(
            f"{path}: column {label_column + 1} looks like the text (such as {labels[0]!r:.60}) and column "
            f"{text_column + 1} like the label ({printable(common):.60}). The text comes first, the label last. {fix}"
        )
    for column in range(len(rows[0][0])) if all(map(is_number, texts)) else ():
        cells = [row[column].strip() for row, _ in rows]
        if len(set(cells)) > len(rows) / 2 and not any(map(is_number, cells)):
            raise UserError(
                f"{path}: column {text_column + 1} is a number in every line, and column {column + 1} looks like the "
                f"text (such as {cells[0]!r:.60}). The text comes first, the label last. {fix}"
            )


def check_no_side_names(sides: Sequence[str], where: str) -> None:
    """Refuse a first pair of texts that is a header, such as "source" and "target". Raises UserError."""
    names = [_name(side) for side in sides]
    if len(set(names)) == len(names) and all(name in SIDE_NAMES for name in names):
        raise UserError(
            f"{where}: looks like a header ({printable(', '.join(sides))}), and would be read as a pair. Remove the "
            "line. (A first line that is a pair: move it down.)"
        )


def _name(cell: str) -> str:
    return cell.strip().strip('"#').strip().casefold().replace(" ", "_").replace("-", "_")
