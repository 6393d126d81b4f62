"""Targets of labelled texts: the index of a label or of several, or a number; checks that they can be learned."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from transformer_jax.errors import UserError, printable, warn

from .columns import MANY, is_number

Labels = tuple[str, ...]  # of a text that can have several, each once
Row = tuple[str, str, str]  # text, label, location for messages
AnyRow = tuple[str, str | Labels, str]  # text, its label or labels, location
LARGEST_TARGET = 1e12  # its square, summed over 100 million parameters of a gradient, is below 3e38
LARGE_SCALE = 100.0  # of numbers to predict; a new head predicts numbers near 0


def to_index(label: str, labels: tuple[str, ...], where: str) -> int:
    """Index of a label. Raises UserError, with file and line, for an unknown one."""
    if label not in labels:
        raise UserError(
            f"{where}: label {label!r:.80} does not occur in training ({printable(', '.join(labels))[:200]})."
        )
    return labels.index(label)


def split_labels(cell: str, separator: str, where: str) -> Labels:
    """Labels of a cell; an empty cell has none. Raises UserError, with file and line: no label beside a separator."""
    if not cell.strip():
        return ()
    labels = [label.strip() for label in cell.strip().split(separator)]
    if "" in labels:
        raise UserError(f"{where}: {cell!r:.80} has an empty label beside {separator!r:.20}. Fix the line.")
    return tuple(dict.fromkeys(labels))


def as_labels(label: str | Labels) -> Labels:
    """Labels of a text; one label is a set of one."""
    return (label,) if isinstance(label, str) else label


def single_label(row: AnyRow) -> Row:
    """A row whose text has one label. Raises UserError, with file and line, for a list of labels."""
    text, label, where = row
    if not isinstance(label, str):
        raise UserError(f"{where}: has a list of labels, and must have one label, or one number. Fix the line.")
    return text, label, where


def known_labels(rows: Sequence[AnyRow]) -> frozenset[str]:
    """Labels of texts that can have several. Raises UserError if no text has one."""
    known = frozenset(label for _, labels, _ in rows for label in as_labels(labels))
    if not known:
        raise UserError(f"data: none of the {len(rows):,} texts to train on has a label. Give labels to some of them.")
    return known


def multi_hot(indices: Sequence[Sequence[int]], num_labels: int) -> np.ndarray:
    """Bool [texts, num_labels]: True at the indices of the labels of each text."""
    rows = np.zeros((len(indices), num_labels), bool)
    for row, of_text in zip(rows, indices, strict=True):
        row[list(of_text)] = True
    return rows


def to_number(label: str, where: str) -> float:
    """Parse a label as a decimal number in ASCII digits, of at most LARGEST_TARGET.

    Raises:
      UserError: it is none (nan, inf, 1,5, 0x10 and 1_000 are none), or larger. File and line are named.
    """
    if not is_number(label):
        fix = "Write a decimal point." if is_number(label.replace(",", ".", 1)) else "Fix the line."
        raise UserError(f"{where}: {label!r:.80} must be a number, such as -1.5, for train.task=regress. {fix}")
    value = float(label)
    if not abs(value) <= LARGEST_TARGET:
        raise UserError(
            f"{where}: {label!r:.80} must be at most {LARGEST_TARGET:.0e}: float32 cannot hold the squares of larger "
            "errors and their sums. Divide all numbers, or fix the line."
        )
    return value


def check_labels(rows: Sequence[Row]) -> None:
    """Refuse labels that nothing can be learned from; warn of those that look like something else."""
    counts = Counter(label for _, label, _ in rows)
    if len(counts) == 1:
        raise UserError(
            f"data: all {len(rows):,} texts to train on have the label {rows[0][1]!r:.80}, and a classifier needs two. "
            "Give texts of other labels too."
        )
    examples = ", ".join(repr(label)[:60] for label in sorted(counts)[:3])
    hint = "If another column is the label, set data.text_field and data.label_field."
    if all(map(is_number, counts)):
        hint = "Take train.task=regress to predict numbers."
    if len(counts) == len(rows) >= MANY:
        raise UserError(
            f"data: each of the {len(rows):,} texts to train on has a label of its own ({examples}). {hint}"
        )
    if len(counts) > len(rows) / 2 and len(rows) >= MANY:
        warn(f"data: {len(rows):,} texts to train on have {len(counts):,} labels ({examples}). {hint}")
    _, label, where = min(rows, key=lambda row: line_of(row[2]))
    others = [count for name, count in counts.items() if name != label]
    if line_of(where) == 1 and counts[label] == 1 and min(others) > 1 and len(rows) > MANY:
        warn(
            f"{where}: label {label!r:.80} occurs only here. If the line is a header, set data.text_field and "
            "data.label_field."
        )


def line_of(where: str) -> int:
    """Number of the line that a location names; 0 if it names none."""
    number = where.rpartition(", line ")[2]
    return int(number) if number.isdecimal() else 0


def check_scale(numbers: Sequence[float]) -> None:
    """Warn of numbers that a new head, which begins near 0, takes very long to reach."""
    mean, deviation = float(np.mean(numbers)), float(np.std(numbers))
    if deviation == 0 and len(numbers) > 1:
        warn(f"data: all numbers to learn are {mean:.6g}. There is nothing to learn from the texts.")
    elif max(abs(mean), deviation) > LARGE_SCALE:
        warn(
            f"data: the numbers to learn have mean {mean:.4g} and standard deviation {deviation:.4g}. A model learns "
            "them faster, and its loss is near 1, if the mean is subtracted and the rest divided by the deviation."
        )
