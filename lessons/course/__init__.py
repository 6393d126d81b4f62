"""Tools of the lessons: predictions and their outcomes, source code of the library, pictures, a short training loop.

A lesson imports this package before JAX: it puts the clone on the path and tunes the process.
"""

import contextlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

LESSONS = Path(__file__).parents[1]  # the folder lessons/
sys.path[:0] = [path for path in (str(LESSONS), str(LESSONS.parent)) if path not in sys.path]

from transformer_jax import startup  # noqa: E402

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy: on small arrays, two threads cost five times as much
is_tuned = os.environ.get(startup.SWITCH) != "off"
assert not (is_tuned and "jax" in sys.modules), "import course before jax, in the first cell"
with contextlib.redirect_stderr(io.StringIO()):  # its line is for people who measure
    startup.prepare()

from course.lesson import outcome, predict, seed, show, steps  # noqa: E402

__all__ = ["LESSONS", "heatmap", "outcome", "picture", "predict", "seed", "show", "steps"]


def __getattr__(name: str) -> Callable:
    """Import matplotlib with the functions that draw: the grader does without it."""
    if name not in ("heatmap", "picture"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from course import pictures

    return getattr(pictures, name)
