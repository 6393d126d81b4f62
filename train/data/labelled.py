"""Labelled texts for classification and regression: TSV, CSV or JSONL files, TFDS, or generated."""

import csv
import dataclasses
import json
import math
import os
from collections.abc import Callable, Sequence

from transformer_jax.errors import UserError, choose, printable
from transformer_jax.lines import check_is_text, read_file, split_lines
from transformer_jax.tokenizers import Tokenizer

from ..config import DataConfig, TokenizerConfig
from .batches import examples_fingerprint, make_tokenizer, tokenizer_lesson
from .columns import check_no_header, check_order
from .from_tfds import tfds_labelled
from .languages import languages
from .sources import split_examples
from .targets import (
    AnyRow,
    Labels,
    as_labels,
    check_labels,
    check_scale,
    known_labels,
    single_label,
    split_labels,
    to_index,
    to_number,
)

Target = float | tuple[int, ...]  # index of a label, a number to predict, or the indices of any number of labels
Example = tuple[str, Target]
JSON_TYPES = {str: "a string", int: "a number", float: "a number", bool: "true or false", list: "a list"}


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
    """Labelled texts: a training and a validation split."""

    train: list[Example]
    validation: list[Example]
    labels: tuple[str, ...]  # () for regression
    tokenizer: Tokenizer
    fingerprint: dict[str, str | int]
    is_multi_label: bool = False  # True: the targets are the indices of any number of labels


def load_labelled(
    config: DataConfig,
    tokenizer_config: TokenizerConfig,
    tokenizer: Tokenizer | None,
    labels: tuple[str, ...] = (),
    head_labels: tuple[str, ...] = (),
    are_numbers: bool = False,
    is_multi_label: bool = False,
) -> Labelled:
    """Load the labelled texts of `data.source`: training and validation split.

    Args:
      tokenizer: one to use; None: train one on the training texts.
      labels: known labels, in order; (): the sorted labels of the training texts.
      head_labels: labels of a trained head; if they are the same set, their order is kept.
      are_numbers: labels are numbers, for regression.
      is_multi_label: a text can have several labels, even if none of the data has; with lists of labels it always can.
    Raises:
      UserError: an unknown source, or an error while reading it; a label unknown in training, or that is no number;
        one label in all texts, or another one in each.
    """
    train_rows = labelled_split(config, "train")
    val_rows = labelled_split(config, "val")
    has_lists = any(not isinstance(label, str) for _, label, _ in (*train_rows, *val_rows))
    is_multi_label = not are_numbers and (is_multi_label or has_lists)
    train_labels: frozenset[str] = frozenset()
    if is_multi_label:
        train_labels = known_labels(train_rows)
    elif are_numbers:
        check_scale([to_number(label, where) for _, label, where in map(single_label, train_rows)])
    else:
        single_rows = [single_label(row) for row in train_rows]
        check_labels(single_rows)
        train_labels = frozenset(label for _, label, _ in single_rows)
    if not are_numbers:
        labels = labels or (head_labels if set(head_labels) == train_labels else tuple(sorted(train_labels)))

    def example(row: AnyRow) -> Example:
        if is_multi_label:
            text, given, where = row
            return text, tuple(sorted(to_index(label, labels, where) for label in as_labels(given)))
        text, label, where = single_label(row)
        return text, to_number(label, where) if are_numbers else to_index(label, labels, where)

    train = [example(row) for row in train_rows]
    validation = [example(row) for row in val_rows]
    if tokenizer is None:
        lesson = tokenizer_lesson(tokenizer_config, [text for text, _ in train], [text for text, _ in validation])
        tokenizer = make_tokenizer(tokenizer_config, lesson)
    fingerprint = examples_fingerprint(train, validation, labels, tokenizer)
    return Labelled(train, validation, labels, tokenizer, fingerprint, is_multi_label)


def labelled_split(config: DataConfig, split: str) -> Sequence[AnyRow]:
    """Load one split (train, val or test) of `data.source`. Raises UserError if it is empty."""
    rows = choose(LABELLED_SOURCES, config.source, "data.source")(config, split)
    if not rows:
        raise UserError(f"data.source={config.source!r}: has too few examples for a training and a validation split.")
    if config.lowercase:
        return [(text.lower(), label, where) for text, label, where in rows]
    return rows


def labelled(config: DataConfig, split: str) -> list[AnyRow]:
    """Load a split from the files `data.path`, `data.val_path` and `data.test_path`; see `read_labelled`.

    Without `data.val_path`, a random share of the first file is used for validation.
    """
    if split == "test" or (split == "val" and config.val_path):
        return read_labelled(config.test_path if split == "test" else config.val_path, config)
    rows = read_labelled(config.path, config)
    if config.val_path:
        return rows
    train, validation = split_examples(rows, config.val_fraction)
    return validation if split == "val" else train


LABELLED_SOURCES: dict[str, Callable[[DataConfig, str], Sequence[AnyRow]]] = {
    "labelled": labelled,
    "languages": languages,
    "tfds": tfds_labelled,
}


def read_labelled(path: str, config: DataConfig) -> list[AnyRow]:
    """Read (text, label, "file, line n") from each line of a .tsv, .csv or .jsonl file, .gz too.

    With `data.text_field` and `data.label_field` a table has a header; without, the text is its first column and the
    label its last. JSON lines have "text" and "label", unless these fields give other names; see `_json_label` for the
    labels that they may have, and to a list of them. Labels lose spaces around them. `data.label_separator` separates
    the labels of a text that has several; with it, or in a list, a text may have none.

    Raises:
      UserError: no such file; a line that is empty, lacks a field or a label, has another number of columns, or is not
        JSON; a header without these settings; a label in the first column, a text in the last.
    """
    if not path:
        raise UserError("data.path='': data.source=labelled needs texts with labels. Give a .tsv, .csv or .jsonl file.")
    name = os.path.expanduser(path)
    kind = name.removesuffix(".gz").rsplit(".", 1)[-1]
    if kind not in ("tsv", "csv", "jsonl"):
        raise UserError(f"data.path={path!r}: must end in .tsv, .csv or .jsonl (or these with .gz).")
    if config.text_field and config.text_field == config.label_field:
        raise UserError(f"data.label_field={config.label_field!r}: is data.text_field, too. Name the label's field.")
    content = read_file(name)
    if kind == "jsonl":
        return _json_lines(path, content, config)
    rows = (_tsv_rows if kind == "tsv" else _csv_rows)(path, content)
    if not rows:
        raise UserError(f"{path}: is empty.")
    width = len(rows[0][0])
    text_column = 0
    label_column = width - 1
    has_header = bool(config.text_field or config.label_field)
    if has_header:
        text_column, label_column = _named_columns(path, rows.pop(0)[0], config)
    for row, where in rows:
        if len(row) != width or width < 2:
            raise UserError(
                f"{where}: has {len(row)} columns; each line must have {max(width, 2)}, a text and a label."
            )
    if rows and not has_header:
        check_no_header(rows, text_column, label_column)
        check_order(rows, text_column, label_column)
    for row, where in rows:
        for column, what in ((text_column, "text"), (label_column, "label")):
            if not row[column].strip() and not (what == "label" and config.label_separator):
                raise UserError(f"{where}: the {what} is empty. Remove the line.")
    return [
        (row[text_column], _cell_label(row[label_column], config.label_separator, where), where) for row, where in rows
    ]


def _cell_label(cell: str, separator: str, where: str) -> str | Labels:
    return split_labels(cell, separator, where) if separator else cell.strip()


def _named_columns(path: str, header: list[str], config: DataConfig) -> tuple[int, int]:
    """Columns of the text and of the label by their names in the header."""
    columns = []
    for setting, other in (("text_field", "label_field"), ("label_field", "text_field")):
        field = getattr(config, setting)
        has = f"It has: {printable(', '.join(header))[:200]}."
        if not field:
            raise UserError(
                f"data.{setting}='': data.{other}={getattr(config, other)!r} says that {path} has a header. Name the "
                f"column of the {setting.removesuffix('_field')} too. {has}"
            )
        if header.count(field) != 1:
            number = f"{header.count(field)} columns" if field in header else "no column"
            raise UserError(f"{path}, line 1: has {number} {field!r}. {has}")
        columns.append(header.index(field))
    return columns[0], columns[1]


def _tsv_rows(path: str, text: str) -> list[tuple[list[str], str]]:
    """Cells and location of each line; a quote is a character."""
    return [(line.split("\t"), f"{path}, line {number}") for number, line in enumerate(split_lines(text), 1)]


def _csv_rows(path: str, text: str) -> list[tuple[list[str], str]]:
    """Cells and location of each row, by Python's csv: a quoted cell may have several lines.

    Raises:
      UserError: a quote that is opened and never closed, which would take all lines after it into one cell.
    """
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    return_character = "\ud800"  # in place of a lone \r, at which csv ends a row; a decoded text cannot have it
    end = "\ud801"  # a last row that only an open quote can take into another
    lines = [f"{line}\n" for line in split_lines(text.replace("\r", return_character))]
    reader = csv.reader([*lines, end])
    rows = []
    first_line = 1
    for row in reader:
        rows.append(([cell.replace(return_character, "\r") for cell in row], f"{path}, line {first_line}"))
        first_line = reader.line_num + 1
    last, where = rows.pop()
    if last != [end]:
        raise UserError(f"{where}: has a quote that is never closed. Close it, or double it if it is a character.")
    return rows


def _json_lines(path: str, text: str, config: DataConfig) -> list[AnyRow]:
    text_field, label_field = config.text_field or "text", config.label_field or "label"
    rows: list[AnyRow] = []
    first_lines: dict[str, int] = {}  # of each type of label
    for number, line in enumerate(split_lines(text), 1):
        where = f"{path}, line {number}"
        try:
            values = json.loads(line)
            text_value, label_value = values[text_field], values[label_field]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            rule = f"must be a JSON object with {text_field!r} and {label_field!r}"
            raise UserError(f"{where}: {rule} ({type(error).__name__}).") from error
        if not isinstance(text_value, str) or not text_value.strip():
            raise UserError(f"{where}: {text_field!r} must be a non-empty string.")
        label: str | Labels
        if isinstance(label_value, list):
            label = tuple(dict.fromkeys(_json_label(item, label_field, where) for item in label_value))
        elif isinstance(label_value, str) and config.label_separator:
            label = split_labels(label_value, config.label_separator, where)
        else:
            label = _json_label(label_value, label_field, where)
        check_is_text(" ".join((text_value, *as_labels(label))), where)
        first_lines.setdefault(JSON_TYPES[type(label_value)], number)
        if len(first_lines) > 1 and "a list" in first_lines:
            rule = f"must be a list of labels in every line or in none, and is {next(iter(first_lines))} in line 1"
            raise UserError(f"{where}: {label_field!r}={json.dumps(label_value):.80}: {rule}. Fix the line.")
        rows.append((text_value, label, where))
    if len(first_lines) > 1:
        found = " and ".join(f"{kind} in line {number}" for kind, number in first_lines.items())
        raise UserError(f"{path}: {label_field!r} is {found}. Write all labels as strings, or all as numbers.")
    return rows


def _json_label(value: object, field: str, where: str) -> str:
    """Label of a JSON value: a string, a number (1.0 is 1), true or false.

    Raises:
      UserError: null, an empty string, NaN or infinity, a list or an object. File and line are named.
    """
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(int(value)) if value == int(value) and abs(value) < 2**53 else str(value)
    rule = "must be a string, a number, true or false. Fix or remove the line."
    if value is None or isinstance(value, str):
        rule = "is no label. Give the text a label, or remove the line."
    raise UserError(f"{where}: {field!r}={json.dumps(value):.80}: {rule}")
