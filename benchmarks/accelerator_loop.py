"""Worker of benchmarks/accelerator_training.py: the training loop itself, with data, metrics and logs.

It writes no checkpoint before the end and evaluates once. Without grain, batches are made without a thread.
"""

import contextlib
import importlib.util
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from transformer_jax import startup

startup.prepare()

from train import loop  # noqa: E402
from train.metrics import read_metrics  # noqa: E402
from train.tasks import base  # noqa: E402


def without_grain() -> bool:
    """Replace the background thread's prefetch if grain is missing; True if it was."""
    if importlib.util.find_spec("grain"):
        return False
    base.prefetch = lambda make, first_step, num_steps: map(make, range(first_step, num_steps))
    return True


def train(config: dict, workdir: Path) -> dict:
    """Run `python -m train`'s loop, its output on stderr. Returns the training events by step."""
    config["train"] = {"tensorboard": False, **config["train"]}
    with contextlib.redirect_stdout(sys.stderr):
        loop.run(config, workdir)
    events = read_metrics(workdir / "metrics.jsonl")
    return {event["step"]: event for event in events if event["split"] == "train"}


def speed(setup: dict) -> dict:
    """Tokens a second of the last log line: two lines of steps, the first one with compilation and start."""
    num_steps = setup["num_steps"]
    best = setup["best"]
    with tempfile.TemporaryDirectory() as folder:
        events = train(
            {
                "model": setup["model"],
                "tokenizer": {"kind": "byte"},
                "data": {"source": "python_docs", "val_fraction": 0.05},
                "optimizer": {"peak_lr": setup["lr"]},
                "train": {
                    "batch_size": best["batch"],
                    "remat": best["remat"],
                    "num_steps": num_steps,
                    "log_every": setup["log_every"],
                    "eval_every": num_steps,
                },
                "checkpoint": {"save_every": num_steps},
            },
            Path(folder) / "run",
        )
    return {
        "tokens_per_second": events[num_steps]["tokens_per_second"],
        "loss": events[num_steps]["loss"],
        "batches_in_a_thread": not is_without_grain,
    }


def resume(setup: dict) -> dict:
    """Train a small float32 model from where it is to `num_steps`; the loss of every logged step."""
    events = train(
        {
            "model": {"num_layers": 2, "d_model": 48, "num_heads": 3, "max_len": 32, "dropout_rate": 0.1},
            "tokenizer": {"kind": "byte"},
            "data": {"source": "text", "path": setup["text"]},
            "optimizer": {"schedule": "constant", "warmup_steps": 0},
            "train": {"batch_size": 8, "num_steps": setup["num_steps"], "log_every": 1, "eval_every": 100},
        },
        Path(setup["workdir"]),
    )
    return {step: event["loss"] for step, event in events.items()}


if __name__ == "__main__":
    setup = json.loads(sys.stdin.readline())
    is_without_grain = without_grain()
    print(json.dumps(resume(setup) if "workdir" in setup else speed(setup)), flush=True)
