"""Benchmark worker: a process controlled by lines of JSON, so that workers take turns and others stay idle."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


class Worker:
    """Process that runs `script` of this folder with `python`. Its first answer, to `setup`, is kept as `hello`."""

    def __init__(self, python: str, script: str, setup: dict, environment: dict[str, str]):
        self.process = subprocess.Popen(
            [python, HERE / script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.hello = self.ask(**setup)

    def ask(self, **order):
        """Send one order and return the answer. Exits if the worker has ended."""
        try:
            print(json.dumps(order), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            sys.exit(f"{self.process.args[1]} ended with exit code {self.process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        """End the process, which gives its memory on the device back."""
        self.process.kill()
        self.process.wait()


BENCH_PYTHON = str(HERE.parent / ".bench" / "bin" / "python")


def torch_python(parser, given: str) -> str:
    """Return the Python of the rivals: given, or .bench's, or this one if it has torch. Exits if there is none."""
    if not given and not Path(BENCH_PYTHON).exists() and importlib.util.find_spec("torch"):
        return sys.executable
    if not Path(given or BENCH_PYTHON).exists():
        parser.error(f"--torch_python={given or BENCH_PYTHON}: there is no such file. Create it with: make bench-env")
    return given or BENCH_PYTHON
