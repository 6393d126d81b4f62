"""Texts with a label each: from TSV, CSV or JSONL files, from TFDS, or made here."""

import csv
import dataclasses
import io
import json
import math
import os

import numpy as np

from transformer_jax.errors import UserError, choose
from transformer_jax.tokenizers import Tokenizer

from ..config import DataConfig, TokenizerConfig
from .batches import make_tokenizer, sha256, tokenizer_sha256
from .from_tfds import tfds_labelled
from .languages import languages
from .sources import read_file

Row = tuple[str, str, str]  # text, label, where it is


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
    """Texts and labels in two parts."""

    train: list[tuple[str, float]]  # text, and the number of its label or the number that it has
    validation: list[tuple[str, float]]
    labels: tuple[str, ...]
    tokenizer: Tokenizer
    fingerprint: dict[str, str | int]


def load_labelled(
    config: DataConfig,
    tokenizer_config: TokenizerConfig,
    tokenizer: Tokenizer | None,
    labels: tuple[str, ...] = (),
    head_labels: tuple[str, ...] = (),
    are_numbers: bool = False,
) -> Labelled:
    """The texts of `data.source` with their labels, in two parts.

    Args:
      tokenizer: one to use; None: a new one learns from the training texts.
      labels: those that are known already, in order; (): those of the training texts, sorted.
      head_labels: those that a head was trained for; where they are the same, theirs is the order.
      are_numbers: what stands where labels do are numbers, to be guessed as such.
    Raises:
      UserError: an unknown source, and what it refuses; a label that training does not have, or that is no number.
    """
    train, validation = labelled_split(config, "train"), labelled_split(config, "val")
    if are_numbers:
        parts = [[(text, to_number(label, where)) for text, label, where in part] for part in (train, validation)]
    else:
        found = {label for _, label, _ in train}
        labels = labels or (head_labels if set(head_labels) == found else tuple(sorted(found)))
        parts = [
            [(text, to_index(label, labels, where)) for text, label, where in part] for part in (train, validation)
        ]
    if tokenizer is None:
        lesson = "\n".join(text for text, _ in parts[0] + (parts[1] if tokenizer_config.kind == "char" else []))
        tokenizer = make_tokenizer(tokenizer_config, lesson)
    digest = sha256(json.dumps(parts))
    fingerprint = {
        "examples_sha256": digest,
        "train_examples": len(parts[0]),
        "val_examples": len(parts[1]),
        "labels": ", ".join(labels),
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
    }
    return Labelled(*parts, labels, tokenizer, fingerprint)


def to_index(label: str, labels: tuple[str, ...], where: str) -> int:
    """The place of a label among all. Raises UserError, with file and line, where it is none of them."""
    if label not in labels:
        raise UserError(f"{where}: label {label!r:.80} does not occur in training ({', '.join(labels)[:200]}).")
    return labels.index(label)


def to_number(label: str, where: str) -> float:
    """A label as a number. Raises UserError, with file and line, where it is none."""
    try:
        value = float(label)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: {label!r:.80} must be a number, for train.task=regress. Mend the line.")
    return value


def labelled_split(config: DataConfig, split: str) -> list[Row]:
    """One part, train, val or test, of `data.source`. Raises UserError where it has no line."""
    rows = choose(LABELLED_SOURCES, config.source, "data.source")(config, split)
    if not rows:
        raise UserError(f"data.source={config.source!r}: has too few examples for a training and a validation part.")
    return rows


def labelled(config: DataConfig, split: str) -> list[Row]:
    """The files of `data.path`, `data.val_path` and `data.test_path`, as `read_labelled` reads them.

    Without `data.val_path` a random share of the first is kept for validation.
    """
    if split == "test" or (split == "val" and config.val_path):
        return read_labelled(config.test_path if split == "test" else config.val_path, config)
    rows = read_labelled(config.path, config)
    if config.val_path:
        return rows
    # By a shuffle of its own: files are often sorted by label.
    order = np.random.default_rng(0).permutation(len(rows))
    num_val = max(1, round(len(rows) * config.val_fraction))
    return [rows[i] for i in sorted(order[:num_val] if split == "val" else order[num_val:])]


LABELLED_SOURCES = {"labelled": labelled, "languages": languages, "tfds": tfds_labelled}


def read_labelled(path: str, config: DataConfig) -> list[Row]:
    """(text, label, "file, line n") for each line of a .tsv, .csv or .jsonl file, .gz too.

    With `data.text_field` and `data.label_field` a table has a header; without, the text is its first column and the
    label its last one. JSON lines have "text" and "label", unless these fields say otherwise.

    Raises:
      UserError: no such file; a line that is empty, has no such field or another number of columns, is no JSON.
    """
    if not path:
        raise UserError("data.path='': data.source=labelled needs texts with labels. Give a .tsv, .csv or .jsonl file.")
    name = os.path.expanduser(path)
    kind = name.removesuffix(".gz").rsplit(".", 1)[-1]
    if kind not in ("tsv", "csv", "jsonl"):
        raise UserError(f"data.path={path!r}: must end in .tsv, .csv or .jsonl (or these with .gz).")
    text = read_file(name)
    if kind == "jsonl":
        return _json_lines(path, text, config.text_field or "text", config.label_field or "label")
    quoting = csv.QUOTE_NONE if kind == "tsv" else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(text), delimiter="\t" if kind == "tsv" else ",", quoting=quoting)
    rows = [(row, f"{path}, line {reader.line_num}") for row in reader]
    if not rows:
        raise UserError(f"{path}: is empty.")
    first, last = 0, len(rows[0][0]) - 1
    if config.text_field or config.label_field:
        header = rows.pop(0)[0]
        for field in (config.text_field, config.label_field):
            if field not in header:
                raise UserError(f"{path}, line 1: has no column {field!r}. It has: {', '.join(header)}.")
        first, last = header.index(config.text_field), header.index(config.label_field)
    width = len(rows[0][0]) if rows else 0
    for row, where in rows:
        if len(row) != width or width < 2:
            raise UserError(
                f"{where}: has {len(row)} columns; each line must have {max(width, 2)}, a text and a label."
            )
        if not row[first].strip():
            raise UserError(f"{where}: the text is empty. Remove the line.")
    return [(row[first], row[last], where) for row, where in rows]


def _json_lines(path: str, text: str, text_field: str, label_field: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{path}, line {number}"
        try:
            values = json.loads(line)
            row = (values[text_field], values[label_field])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            wanted = f"a JSON object with {text_field!r} and {label_field!r}"
            raise UserError(f"{where}: must be {wanted} ({type(error).__name__}).") from error
        if not isinstance(row[0], str) or not row[0].strip():
            raise UserError(f"{where}: {text_field!r} must be a text that is not empty.")
        rows.append((row[0], str(row[1]), where))
    return rows
