"""A process beside which another is measured, spoken to in lines of JSON: each works while the others rest."""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


class Worker:
    """`script` of this folder, run by `python`. Its first answer, to `setup`, is kept as `hello`."""

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
        """The answer to one order. Ends the benchmark where the worker has ended."""
        print(json.dumps(order), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"{self.process.args[1]} ended with exit code {self.process.wait()}")
        return json.loads(answer)


def torch_python(parser, given: str) -> str:
    """The Python of the rivals' environment, or an error that says how to make it."""
    if not Path(given).exists():
        parser.error(f"--torch_python={given}: there is no such file. Make it with: make bench-env")
    return given


TORCH_PYTHON = str(HERE.parent / ".bench" / "bin" / "python")
