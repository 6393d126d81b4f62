"""Targets of labelled texts: the index of a label, or a number; checks that something can be learned from them."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from transformer_jax.errors import UserError, printable, warn

from .columns import MANY, is_number

Row = tuple[str, str, str]  # text, label, location for messages
LARGEST_TARGET = 1e12  # its square, summed over 100 million parameters of a gradient, is below 3e38
LARGE_SCALE = 100.0  # of numbers to predict; a new head predicts numbers near 0


def to_index(label: str, labels: tuple[str, ...], where: str) -> int:
    """Index of a label. Raises UserError, with file and line, for an unknown one."""
    if label not in labels:
        raise UserError(
            f"{where}: label {label!r:.80} does not occur in training ({printable(', '.join(labels))[:200]})."
        )
    return labels.index(label)


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
