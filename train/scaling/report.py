"""Report of a ladder: the fitted laws with their intervals, errors on runs left out, the prediction, the picture."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend without a screen must be chosen first)

from transformer_jax.files import replace_file  # noqa: E402

from .fit import FORMS, Law, Points, Prediction, fit, interval, resampled  # noqa: E402
from .ladder import Done  # noqa: E402


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """Runs of a ladder, a law that fits them, and the laws of resampled runs."""

    points: Points
    law: Law
    laws: list[Law]


def as_points(runs: Sequence[Done]) -> Points:
    """Runs as arrays."""
    columns = [[one.num_params, one.num_targets, one.flops, one.loss] for one in runs]
    return Points(*np.array(columns, np.float64).T)


def fit_all(runs: Sequence[Done], num_resamples: int) -> dict[str, Fitted]:
    """Fit every form of FORMS to runs."""
    points = as_points(runs)
    laws = {name: fit(form, points) for name, form in FORMS.items()}
    return {name: Fitted(points, law, resampled(law, points, num_resamples)) for name, law in laws.items()}


def describe(fitted: Fitted) -> dict[str, Any]:
    """Numbers of a law with their intervals, the scatter of runs about it, and its errors on runs left out."""
    law, points = fitted.law, fitted.points
    numbers = law.numbers
    residuals = law.residuals(points)
    result: dict[str, Any] = {
        "fit": numbers,
        "interval": {name: interval(np.array([one.numbers[name] for one in fitted.laws])) for name in numbers},
        "rms_of_log_loss": float(np.sqrt(np.mean(residuals**2))),
        "left_out": {name: _left_out(law, points, chosen) for name, chosen in _largest(points).items()},
    }
    if "beta" in numbers:
        shares = [one.numbers["beta"] / (one.numbers["alpha"] + one.numbers["beta"]) for one in [law, *fitted.laws]]
        # Hoffmann et al. 2022, equation 4: for C = 6 N D, the best N grows as C^a and the best D as C^(1 - a).
        result["optimal_size_exponent"] = {"fit": shares[0], "interval": interval(np.array(shares[1:]))}
    return result


def _largest(points: Points) -> dict[str, np.ndarray]:
    """Masks of runs to leave out, of which the others must predict the loss."""
    return {
        "largest size": points.n == points.n.max(),
        "largest budget": points.d > 0.9 * points.d.max(),
        "largest fifth by compute": points.flops > np.quantile(points.flops, 0.8),
    }


def _left_out(law: Law, points: Points, chosen: np.ndarray) -> dict[str, float]:
    """Errors in nats, predicted less measured, of a law that is fitted without the chosen runs."""
    others = fit(law.form, points.select(~chosen))
    held = points.select(chosen)
    errors = np.exp(others.log_loss(held.n, held.d)) - held.loss
    return {"mean": float(errors.mean()), "smallest": float(errors.min()), "largest": float(errors.max())}


def draw(fitted: Fitted, runs: Sequence[Done], made: Sequence[Done], prediction: Prediction | None, path: Path) -> None:
    """Draw the loss over compute, and lines of equal loss over parameters and tokens.

    Args:
      fitted: of the form "chinchilla".
      made: larger runs, which `prediction` was for.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    points, law = fitted.points, fitted.law
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(np.unique(points.n))))
    for n, color in zip(np.unique(points.n), colors, strict=True):
        at = points.select(points.n == n)
        d = np.geomspace(at.d.min(), at.d.max(), 50)
        left.plot(at.flops, at.loss, "o", color=color, markersize=4, label=f"{_si(n)} parameters")
        left.plot(at.flops[0] / at.d[0] * d, np.exp(law.log_loss(np.full_like(d, n), d)), "-", color=color)
    if prediction:
        x = [one.flops for one in made] or [points.flops.max() * 2]
        bars = [[prediction.loss - prediction.low], [prediction.high - prediction.loss]]
        left.errorbar(x[:1], [prediction.loss], bars, fmt="s", color="tab:red", capsize=4, label="predicted, 80 %")
        left.plot(x[: len(made)], [one.loss for one in made], "*", color="tab:orange", markersize=11, label="measured")
    if runs[0].floor:
        left.axhline(np.mean([one.floor for one in runs]), color="black", linestyle=":", label="entropy floor")
    if law.numbers["E"] > 0.7 * points.loss.min():  # else the line would press all others together
        left.axhline(law.numbers["E"], color="gray", linestyle="--", label=f"fitted E {law.numbers['E']:.3f}")
    left.set(xscale="log", xlabel="training FLOPs", ylabel="validation loss (nats per token)")
    left.legend(fontsize=7)
    left.grid(alpha=0.3)

    n, d = np.meshgrid(
        np.geomspace(points.n.min(), points.n.max(), 60), np.geomspace(points.d.min(), points.d.max(), 60)
    )
    lines = right.contour(n, d, np.exp(law.log_loss(n, d)), levels=12, cmap="viridis_r")
    right.clabel(lines, fontsize=7)
    right.plot(points.n, points.d, "k.", markersize=3)
    right.set(
        xscale="log", yscale="log", xlabel="parameters N", ylabel="training tokens D", title="Lines of equal loss"
    )
    for axis in (right.xaxis, right.yaxis):
        axis.set_minor_formatter(matplotlib.ticker.NullFormatter())  # their labels would overlap
    with replace_file(path) as file:
        figure.savefig(file, dpi=120)
    plt.close(figure)


def _si(number: float) -> str:
    return f"{number / 1e6:.2f}M" if number >= 1e6 else f"{number / 1e3:.0f}k"
