"""A part of benchmarks/accelerator.py: its settings come in as a line of JSON, each figure goes out as one."""

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

# GPT-2 124M as it was published, 50,257 ids: a rounded vocabulary would be faster, for the rival as for us.
GPT2 = dict(
    vocab_size=50257, max_len=1024, num_layers=12, d_model=768, num_heads=12, feed_forward="gelu_tanh", dtype="bfloat16"
)
SHAPES = {
    "gpt2": {
        "model": GPT2,
        "batches": (32, 64, 16, 128, 8),
        "product": 8192,
        "copy_mb": 2048,
        "attention": (8, 1024, 12),
    },
    "tiny": {
        "model": GPT2 | dict(vocab_size=263, max_len=32, num_layers=2, d_model=48, num_heads=3),
        "batches": (4,),
        "product": 256,
        "copy_mb": 16,
        "attention": (2, 32, 3),
    },
}
NO_PREALLOCATION = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # so that the rival and other processes fit beside


class Part:
    """Settings of a part, the time that is left to it, and its way to report."""

    def __init__(self, settings: dict):
        self.settings = settings
        self.device: str = settings["device"]
        self.is_gpu = self.device == "gpu"
        self.shape = SHAPES[settings["shape"]]
        self.torch_python: str = settings["torch_python"]  # "": there is no rival
        self._began = time.perf_counter()
        self._lock = threading.Lock()

    def time_left(self, until: float = 1.0) -> float:
        """Seconds until this share of the part's time is over."""
        return self.settings["seconds"] * until - (time.perf_counter() - self._began)

    def report(self, name: str, value: object) -> None:
        """Report a figure; slashes in the name make a tree."""
        with self._lock:  # threads report, too
            print(json.dumps({"name": name, "value": value}), flush=True)

    def attempt(self, name: str, action: Callable, *args: object):
        """Run one step of a part; report what went wrong in place of its figures, and go on. None if it failed."""
        try:
            return action(*args)
        except (Exception, SystemExit) as error:  # whatever it is, the other figures are still wanted
            self.report(f"{name}/failed", f"{type(error).__name__}: {error}"[:600])
        return None


def start() -> Part:
    """Read the settings. A process that calls `startup.prepare` does so before: it may begin again."""
    return Part(json.loads(sys.stdin.readline()))


def environment(device: str) -> dict[str, str]:
    """Environment variables of a part and its workers."""
    return {"gpu": NO_PREALLOCATION, "cpu": {"JAX_PLATFORMS": "cpu"}}[device]
