"""Files of the course, and its tools, which are imported as lessons import them."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LESSONS = ROOT / "lessons"
EXERCISES = LESSONS / "exercises"
SOLUTIONS = EXERCISES / "solutions"

if str(LESSONS) not in sys.path:
    sys.path.append(str(LESSONS))

from course import grading  # noqa: E402  needs the line above


def solution_of(stem):
    """The solved file of an exercise, as a module."""
    return grading.load(SOLUTIONS / f"{stem}.py")
