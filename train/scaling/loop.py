"""A ladder, in order: train what is missing, fit the laws, predict a larger run, make it, report."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.files import write_text

from ..run_directory import lock
from .config import LadderConfig, Run
from .fit import Prediction, predict
from .ladder import Done, Size, check_settings, train_ladder
from .report import describe, draw, fit_all

PREDICTS = "chinchilla"  # the law that predicts the larger run


def run(config: LadderConfig, workdir: str | Path) -> None:
    """Train what is missing of a ladder in `workdir`, and write its report there.

    Raises:
      UserError: a setting is invalid, or the runs in `workdir` have others, or other data.
      RunError: a run diverges.
    """
    workdir = Path(workdir).expanduser()
    seed = config.train.seed
    with lock(workdir):
        check_settings(workdir, config)
        runs = _train(config, workdir, config.scaling.ladder(seed))
        fitted = fit_all(runs, config.scaling.num_resamples)
        laws = {name: describe(one) for name, one in fitted.items()}
        report: dict[str, Any] = {"laws": laws}
        if runs[0].floor:
            report["entropy_floor"] = float(np.mean([one.floor for one in runs]))
        print("\n".join(_describe(name, law) for name, law in laws.items()), flush=True)

        prediction: Prediction | None = None
        made: list[Done] = []
        larger = config.scaling.predicted(seed)
        if larger:
            best = fitted[PREDICTS]
            size = Size(config, larger[0])
            prediction = predict(best.law, best.laws, best.points, *size.cost(larger[0]))
            report["prediction"] = dataclasses.asdict(prediction)
            _write(report, workdir)  # before the run is made
            low, high = prediction.low, prediction.high
            print(f"predicted for {larger[0].size}: {prediction.loss:.4f}, 80 % interval {low:.4f} to {high:.4f}")
            made = _train(config, workdir, larger, size)
            losses = [one.loss for one in made]
            is_inside = low <= float(np.mean(losses)) <= high
            report["measured"] = {"losses": losses, "mean": float(np.mean(losses)), "is_inside": is_inside}
            print(f"measured: {np.mean(losses):.4f}, {'inside' if is_inside else 'NOT inside'} the interval")
        _write(report, workdir)
        draw(fitted[PREDICTS], runs, made, prediction, workdir / "scaling.png")
        print(f"Report: {workdir / 'scaling.json'}, {workdir / 'scaling.png'}", flush=True)


def _train(config: LadderConfig, workdir: Path, runs: Sequence[Run], size: Size | None = None) -> list[Done]:
    """Train runs, with a line for each."""
    done: list[Done] = []
    for one, was_done in train_ladder(config, workdir, runs, size):
        done.append(one)
        cost = "done before" if was_done else f"{one.seconds:.0f} s"
        print(
            f"{len(done):>3}/{len(runs)}  {one.run.size:>6}  {one.num_params:>10,} parameters  "
            f"{one.num_targets:>10,} tokens  seed {one.seed}  loss {one.loss:.4f}  {cost}",
            flush=True,
        )
    return done


def _describe(name: str, law: dict[str, Any]) -> str:
    """Lines on a law for people: its numbers with their intervals, and its errors."""
    numbers = [
        f"{key} {value:.4g} ({law['interval'][key][0]:.4g} to {law['interval'][key][1]:.4g})"
        for key, value in law["fit"].items()
    ]
    lines = [f"{name}: {', '.join(numbers)}; rms of log loss {law['rms_of_log_loss']:.4f}"]
    if "optimal_size_exponent" in law:
        low, high = law["optimal_size_exponent"]["interval"]
        lines.append(
            f"  best size grows as compute^{law['optimal_size_exponent']['fit']:.2f} ({low:.2f} to {high:.2f})"
        )
    for part, errors in law["left_out"].items():
        lines.append(f"  without the {part}: errors {errors['smallest']:+.3f} to {errors['largest']:+.3f} nats")
    return "\n".join(lines)


def _write(report: dict[str, Any], workdir: Path) -> None:
    write_text(workdir / "scaling.json", json.dumps(report, indent=1) + "\n")
