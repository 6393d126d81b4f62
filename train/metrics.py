"""What a run says about itself: metrics.jsonl, TensorBoard files, and lines or a progress bar."""

import json
import math
import os
from pathlib import Path
from typing import Any

import rich.console
import rich.progress
from tensorboardX import SummaryWriter

from . import entropy_floor


def perplexity(nats_per_token: float) -> float:
    """exp(loss): the number of equally likely tokens that would be as hard to guess."""
    return math.exp(min(nats_per_token, 700.0))


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """Loss per byte of UTF-8 text, which compares across tokenizers as perplexity does not."""
    return nats_per_token / math.log(2) / bytes_per_token


class MetricsLog:
    """Writes every event to `workdir/metrics.jsonl` and TensorBoard, and shows it.

    Args:
      first_step: the step that the run starts or resumes from. Lines after it, written by a process that
        went further than its last checkpoint, are dropped: they will be written again.
      num_steps: the last step.
      has_perplexity: whether the loss is that of tokens in a text.
    """

    def __init__(self, workdir: Path, first_step: int, num_steps: int, tensorboard: bool, has_perplexity: bool = True):
        self.steps_timed, self.seconds = 0, 0.0  # in all; those with an underscore since the last line
        self._tokens, self._seconds, self._seconds_left, self._text = 0, 0.0, 0.0, ""
        self._num_steps, self._has_perplexity = num_steps, has_perplexity
        path = workdir / "metrics.jsonl"
        _drop_lines_after(path, first_step)
        self._file = open(path, "a", encoding="utf-8")
        self._tensorboard = None
        if tensorboard:
            self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)
        self._console = rich.console.Console(highlight=False, soft_wrap=True)
        self._bar = None
        if self._console.is_terminal:
            columns = ("step {task.completed}/{task.total}", rich.progress.BarColumn(), "{task.fields[text]}")
            self._bar = rich.progress.Progress(*columns, console=self._console)
            self._task = self._bar.add_task("training", total=num_steps, completed=first_step, text="")
            self._bar.start()

    def steps(self, n: int, step: int, num_tokens: int, seconds: float) -> None:
        """`n` more steps, up to `step`, over `num_tokens` tokens took so long."""
        self.steps_timed += n
        self.seconds += seconds
        if self.steps_timed > 1:  # the first one was spent compiling
            self._tokens += num_tokens
            self._seconds += seconds
            self._seconds_left = (self._num_steps - step) * seconds / n
        if self._bar:
            self._bar.update(self._task, completed=step, text=self._text + self._time_left())

    def train(self, step: int, numbers: dict[str, Any], learning_rate: float) -> None:
        """The mean loss since the line before, and what else `numbers` of the training state say."""
        weight_sum = float(numbers["weight_sum"])
        loss = float(numbers["loss_sum"]) / weight_sum if weight_sum else math.nan
        speed = self._tokens / self._seconds if self._seconds else math.nan
        self._event(
            step,
            "train",
            {
                "loss": loss,
                **self._perplexity(loss),
                "learning_rate": learning_rate,
                "grad_norm": float(numbers["grad_norm"]),
                "tokens_per_second": round(speed, 1) if speed == speed else speed,
                "skipped_steps": int(numbers["skipped_steps"]),
            },
        )
        self._tokens = self._seconds = 0
        words = "".join(f"  {name} {value:.2f}" for name, value in self._perplexity(loss).items())
        self._text = f"loss {loss:.4f}{words}  {speed:,.0f} tokens/s"
        if self._bar:
            self._bar.update(self._task, text=self._text + self._time_left())
        else:
            self.say(f"{self._step(step)}  {self._text}{self._time_left()}")

    def val(self, step: int, values: dict[str, float], bytes_per_token: float | None) -> None:
        """What was measured over the whole validation split, `loss` first; of text bits per byte, too."""
        loss = values["loss"]
        values = values | self._perplexity(loss)
        words = f"validation loss {loss:.4f}"
        words += f"  perplexity {values['perplexity']:.2f}" if self._has_perplexity else ""
        if bytes_per_token is not None:
            values |= {"bits_per_byte": bits_per_byte(loss, bytes_per_token)}
            words += f"  {values['bits_per_byte']:.4f} bits/byte"
        if "floor" in values:
            words += f"  {entropy_floor.describe(values)}"
        else:
            shown = [name for name in values if name not in ("loss", "perplexity", "bits_per_byte")]
            words += "".join(f"  {name} {values[name]:.4f}" for name in shown)
        self._event(step, "val", values)
        self.say(f"{self._step(step)}  {words}")
        if values.get("leak"):
            self.say(entropy_floor.warn(values))

    def _perplexity(self, loss: float) -> dict[str, float]:
        return {"perplexity": perplexity(loss)} if self._has_perplexity else {}

    def _event(self, step: int, split: str, values: dict[str, Any]) -> None:
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
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

    def say(self, text: str) -> None:
        """A line that stays, above the bar if there is one."""
        self._console.print(text, markup=False)
        self._console.file.flush()

    def close(self) -> None:
        """Stop the bar and close the files."""
        if self._bar:
            self._bar.stop()
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()


def read_metrics(path: Path) -> list[dict]:
    """The events of a metrics.jsonl; a last line that a kill cut off is left out."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


def _drop_lines_after(path: Path, step: int) -> None:
    kept = [event for event in read_metrics(path) if event["step"] <= step]
    scratch = path.with_suffix(".tmp")
    scratch.write_text("".join(json.dumps(event) + "\n" for event in kept), encoding="utf-8")
    os.replace(scratch, path)
