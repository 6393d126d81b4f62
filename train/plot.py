"""Plots: the loss curve of a run, and the confusion matrix of an evaluation."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend without a screen must be chosen first)

from transformer_jax.files import replace_file  # noqa: E402

from .metrics import read_metrics  # noqa: E402


def draw_loss(workdir: str | Path) -> Path:
    """Draw the loss curve of `workdir/metrics.jsonl` as `workdir/loss.png`. Returns the path of the picture."""
    workdir = Path(workdir)
    events = [event for event in read_metrics(workdir / "metrics.jsonl") if event["loss"] is not None]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for split, style, label in (("train", "-", "training"), ("val", "o-", "validation")):
        points = [(event["step"], event["loss"]) for event in events if event["split"] == split]
        if points:
            steps, losses = zip(*points, strict=True)
            axes.plot(steps, losses, style, label=f"{label}, last {losses[-1]:.3f}", markersize=3)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(workdir.absolute().name, parse_math=False)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    path = workdir / "loss.png"
    with replace_file(path) as file:
        figure.savefig(file, dpi=120)
    plt.close(figure)
    return path


def draw_confusion(counts: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix: the share of each label (row) that was predicted as each label (column)."""
    size = min(24.0, 2.5 + 0.5 * len(names))
    figure, axes = plt.subplots(figsize=(size, size), dpi=120)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for row, column in np.argwhere(counts) if len(names) <= 40 else ():
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=color, fontsize=7)
    axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true", title="Confusion matrix")
    with replace_file(path) as file:
        figure.savefig(file, bbox_inches="tight")
    plt.close(figure)
