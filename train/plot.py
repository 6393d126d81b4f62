"""loss.png: the training and validation loss of a run over its steps."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend without a screen has to be chosen first)

from train.metrics import read_metrics  # noqa: E402


def draw_loss(workdir: str | Path) -> Path:
    """Draw `workdir/metrics.jsonl` as `workdir/loss.png` and return its path."""
    workdir = Path(workdir)
    events = [event for event in read_metrics(workdir / "metrics.jsonl") if event["loss"] is not None]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for split, style, label in (("train", "-", "training"), ("val", "o-", "validation")):
        points = [(event["step"], event["loss"]) for event in events if event["split"] == split]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=f"{label}, last {points[-1][1]:.3f}", markersize=3)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(workdir.absolute().name)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    path = workdir / "loss.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
