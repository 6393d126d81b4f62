"""Metrics of a run: metrics.jsonl, TensorBoard files, log lines and a progress bar."""

import codecs
import contextlib
import json
import math
import os
import sys
from pathlib import Path
from typing import Any, TypedDict, cast

import rich.console
import rich.progress

from transformer_jax.errors import printable, warn
from transformer_jax.files import check_is_file, write_text, writing
from transformer_jax.inference.score import perplexity

from . import entropy_floor
from .tensorboard import EventFile

LARGEST = sys.float_info.max  # of a number that a plot can show


class Event(TypedDict):
    """One line of metrics.jsonl: these, and the other metrics of the split."""

    step: int
    split: str  # train | val
    loss: float | None  # None: NaN or infinite


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """Bits per byte of UTF-8 text: a loss that compares across tokenizers, unlike perplexity."""
    return nats_per_token / math.log(2) / bytes_per_token


def text_metrics(nats_per_token: float, bytes_per_token: float | None = None) -> dict[str, float]:
    """Metrics that follow from a loss per token: perplexity, and bits per byte if bytes per token are known."""
    metrics = {"perplexity": perplexity(nats_per_token)}
    if bytes_per_token is not None:
        metrics["bits_per_byte"] = bits_per_byte(nats_per_token, bytes_per_token)
    return metrics


class _Console(rich.console.Console):
    """Console that leaves a closed pipe to its caller; rich would end the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class MetricsLog:
    """Log of a run: writes every event to `workdir/metrics.jsonl` and TensorBoard, and prints it.

    Args:
      first_step: the step that the run starts or resumes from. Later lines, from a process that went further than
        its last checkpoint, are dropped: they will be written again.
      num_steps: the last step.
      has_perplexity: True if the loss is per token of a text.
      evaluates_first: True if the evaluation of `first_step` will be made, and logged, again.
    """

    def __init__(
        self,
        workdir: Path,
        first_step: int,
        num_steps: int,
        tensorboard: bool,
        has_perplexity: bool = True,
        evaluates_first: bool = False,
    ):
        self.steps_timed = 0
        self.total_seconds = 0.0
        # Since the last log line:
        self._tokens = 0
        self._seconds = 0.0
        self._seconds_left = 0.0
        self._bar_text = ""
        self._num_steps = num_steps
        self._has_perplexity = has_perplexity
        self._path = workdir / "metrics.jsonl"
        check_is_file(self._path)
        _drop_lines_after(self._path, first_step, evaluates_first)
        self._file = open(self._path, "a", encoding="utf-8")
        self._tensorboard = EventFile(workdir / "tensorboard", first_step + 1) if tensorboard else None
        self._console = _Console(highlight=False, soft_wrap=True)
        self._bar = None
        if self._console.is_terminal:
            columns = ("step {task.completed}/{task.total}", rich.progress.BarColumn(), "{task.fields[text]}")
            self._bar = rich.progress.Progress(*columns, console=self._console)
            self._task = self._bar.add_task("training", total=num_steps, completed=first_step, text="")
            self._bar.start()

    def add_steps(self, n: int, step: int, num_tokens: int, seconds: float) -> None:
        """Add `n` more steps, up to `step`, with `num_tokens` tokens, that took `seconds`."""
        self.steps_timed += n
        self.total_seconds += seconds
        if self.steps_timed > 1:  # the first one was spent compiling
            self._tokens += num_tokens
            self._seconds += seconds
            self._seconds_left = (self._num_steps - step) * seconds / n
        if self._bar:
            self._bar.update(self._task, completed=step, text=self._bar_text + self._time_left())

    def train(self, step: int, metrics: dict[str, Any], learning_rate: float) -> None:
        """Log training metrics: the mean loss since the last line, learning rate, gradient norm, speed, skipped steps.

        Args:
          metrics: of the training state: loss_sum, weight_sum, grad_norm, skipped_steps.
        """
        weight_sum = float(metrics["weight_sum"])
        loss = float(metrics["loss_sum"]) / weight_sum if weight_sum else math.nan
        speed = self._tokens / self._seconds if self._seconds else math.nan
        self._write(
            step,
            "train",
            {
                "loss": loss,
                **self._perplexity(loss),
                "learning_rate": learning_rate,
                "grad_norm": float(metrics["grad_norm"]),
                "tokens_per_second": speed if math.isnan(speed) else round(speed, 1),
                "skipped_steps": int(metrics["skipped_steps"]),
            },
        )
        self._tokens = 0
        self._seconds = 0.0
        words = "".join(f"  {name} {value:.2f}" for name, value in self._perplexity(loss).items())
        self._bar_text = f"loss {loss:.4f}{words}  {speed:,.0f} tokens/s"
        if self._bar:
            self._bar.update(self._task, text=self._bar_text + self._time_left())
        else:
            self.print(f"{self._step(step)}  {self._bar_text}{self._time_left()}")

    def val(self, step: int, values: dict[str, float]) -> None:
        """Log validation metrics, the `values` of `Task.evaluate`: `loss` first."""
        words = f"validation loss {values['loss']:.4f}"
        words += f"  perplexity {values['perplexity']:.2f}" if "perplexity" in values else ""
        words += f"  {values['bits_per_byte']:.4f} bits/byte" if "bits_per_byte" in values else ""
        if "floor" in values:
            words += f"  {entropy_floor.describe(values)}"
        else:
            shown = [name for name in values if name not in ("loss", "perplexity", "bits_per_byte")]
            words += "".join(f"  {name} {values[name]:.4f}" for name in shown)
        self._write(step, "val", values)
        self.print(f"{self._step(step)}  {words}")
        if values.get("leak"):
            self.print(entropy_floor.leak_warning(values))

    def _perplexity(self, loss: float) -> dict[str, float]:
        return {"perplexity": perplexity(loss)} if self._has_perplexity else {}

    def _write(self, step: int, split: str, values: dict[str, Any]) -> None:
        """Write one event as a line of metrics.jsonl and to TensorBoard. NaN and infinity become null."""
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        with writing(self._path):
            self._file.write(json.dumps({"step": step, "split": split, **values}, allow_nan=False) + "\n")
            self._file.flush()
        if self._tensorboard:
            for name, value in values.items():
                if value is not None:
                    self._tensorboard.add_scalar(f"{split}/{name}", value, step)

    def _step(self, step: int) -> str:
        return f"step {step:>{len(str(self._num_steps))}}/{self._num_steps}"

    def _time_left(self) -> str:
        minutes, seconds = divmod(round(self._seconds_left), 60)
        return f"  {minutes}:{seconds:02d} left"

    def print_first_step(self, seconds_since_start: float) -> None:
        """Print the time from the start to the end of the first step, and the part that compiled that step."""
        self.print(f"first step {seconds_since_start:.1f} s after the start, compiled in {self.total_seconds:.1f} s")

    def print(self, text: str) -> None:
        """Print lines that stay, above the progress bar if there is one.

        When the terminal or the reader of a pipe has gone, the lines go nowhere and the run goes on.
        """
        try:
            self._console.print("\n".join(map(printable, text.split("\n"))), markup=False)
            self._console.file.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._console.file.fileno())

    def sync(self) -> None:
        """Flush metrics.jsonl to the disk, so that a power cut leaves no checkpoint without the lines before it."""
        with writing(self._path):
            os.fsync(self._file.fileno())
        if self._tensorboard:
            self._tensorboard.flush()

    def close(self) -> None:
        """Stop the progress bar and close the files."""
        if self._bar:
            with contextlib.suppress(OSError):  # the terminal is gone
                self._bar.stop()
        try:
            with writing(self._path):
                self._file.close()
        finally:
            if self._tensorboard:
                self._tensorboard.close()


def read_metrics(path: Path) -> list[Event]:
    """Read the events of a metrics.jsonl, in the order of its lines; no file, no events.

    A line that is no event (damaged, cut off by a kill, without a step) is left out, and a warning on stderr says
    how many are.
    """
    lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n") if path.is_file() else []
    events = [parse_event(line) for line in lines if line.strip()]
    num_left_out = events.count(None)
    if num_left_out:
        warn(f"{path}: lines left out because they are no events of a run: {num_left_out}")
    return [event for event in events if event is not None]


def parse_event(line: bytes) -> Event | None:
    """Parse a line of metrics.jsonl; None if it is not the JSON of an event."""
    try:
        event = json.loads(line.decode(), parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):  # not UTF-8, not JSON, NaN, or nested without end
        return None
    if not isinstance(event, dict) or not {"step", "split", "loss"} <= event.keys():
        return None
    is_step = type(event["step"]) is int and 0 <= event["step"] <= LARGEST
    is_loss = event["loss"] is None or (type(event["loss"]) in (int, float) and abs(event["loss"]) <= LARGEST)
    return cast(Event, event) if is_step and isinstance(event["split"], str) and is_loss else None


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(number)
    return value


def _drop_lines_after(path: Path, step: int, with_val: bool) -> None:
    """Drop the events after a step, and its evaluation if `with_val`.

    A new file takes the place of the old one, so a kill leaves one of them.
    """
    events = [event for event in read_metrics(path) if event["step"] <= step]
    kept = [event for event in events if not (with_val and event["step"] == step and event["split"] == "val")]
    write_text(path, "".join(json.dumps(event) + "\n" for event in kept))
