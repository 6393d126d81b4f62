"""State of the lesson that runs in this process, and the functions that its cells call."""

import dataclasses
import inspect
import math
import sys
import textwrap
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A question with the band in which its outcome must be."""

    question: str
    low: float
    high: float
    guess: float | None = None


@dataclasses.dataclass
class Lesson:
    """State of a run of a lesson: its settings, and what it has found so far.

    `share`: the share of training steps that are made; the bands hold for 1 only. `pictures`: the folder into which
    pictures are written when a page is rendered; None: shown, where there is a screen.
    """

    name: str = Path(sys.argv[0]).stem
    share: float = 1.0
    seed: int = 0
    asks: bool = False
    pictures: Path | None = None
    num_pictures: int = 0
    prediction: Prediction | None = None  # whose outcome is not known yet
    num_outcomes: int = 0
    misses: list[str] = dataclasses.field(default_factory=list)


current = Lesson()


def seed() -> int:
    """Seed of this run of the lesson: 0 for its page."""
    return current.seed


def steps(number: int) -> int:
    """Number of training steps to make: all of them, or the share that `python -m lessons run --steps` asks for."""
    return max(1, round(number * current.share))


def predict(question: str, low: float, high: float) -> None:
    """Ask for a number that a later cell computes; `outcome` must find it between low and high, for any seed."""
    assert current.prediction is None, f"the outcome of {current.prediction} comes first"
    assert low <= high, (low, high)
    guess = None
    if current.asks:
        print(f"\nPredict: {question}")
        guess = _ask("Your guess (Enter: none): ")
    current.prediction = Prediction(question, low, high, guess)


def outcome(value: float) -> None:
    """Print the number that was asked for, beside its band. Outside of it, the run of the lesson fails at its end."""
    assert current.prediction is not None, "outcome without predict"
    asked = current.prediction
    current.prediction = None
    current.num_outcomes += 1
    is_full = current.share == 1.0
    if asked.guess is not None:
        print(f"your guess: {asked.guess:g}")
    print(f"outcome: {float(value):.4g}" + (f" (expected: {_band(asked)})" if is_full else " (fewer steps: no band)"))
    if is_full and not asked.low <= value <= asked.high:
        miss = f"{asked.question}: {float(value):.4g} is outside of its band, {_band(asked)}"
        current.misses.append(miss)
        print(miss, file=sys.stderr)


def show(thing: Any) -> None:
    """Print the present source of a function, class or module of the library, so that a lesson cannot drift from it."""
    source = textwrap.dedent(inspect.getsource(thing)).rstrip()
    print(f"# {place_of(thing)}\n{source}")


def place_of(thing: Any) -> str:
    """Place of a function or class: file below the clone, and qualified name."""
    thing = inspect.unwrap(thing)
    file = Path(inspect.getsourcefile(thing)).resolve().relative_to(Path(__file__).resolve().parents[2])
    return f"{file.as_posix()}: {thing.__qualname__}"


def _band(asked: Prediction) -> str:
    return f"{asked.low:g}" if asked.low == asked.high else f"{asked.low:g} to {asked.high:g}"


def _ask(prompt: str) -> float | None:
    while answer := _read_line(prompt):
        try:
            guess = float(answer)
        except ValueError:
            guess = math.nan
        if math.isfinite(guess):
            return guess
        print(f"{answer!r} is not a number; write 0.5 or 3e-4, or press Enter.")
    return None


def _read_line(prompt: str) -> str:
    try:
        return input(prompt).strip()
    except EOFError:  # nobody is there to answer
        return ""
