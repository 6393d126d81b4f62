"""Grader of the exercises: an answer is compared with the right twin, with the laws, and with wrong twins.

A wrong twin is the right function with one switch set. The wrong twin that an answer equals in all cases names the
mistake; two switches at once are tried as well.
"""

import copy
import dataclasses
import importlib
import itertools
import signal
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

SECONDS = 20  # that one part of an answer may take
LEARNERS_ERRORS = (Exception, SystemExit)  # whatever an answer raises becomes a line

Case = tuple[str, tuple]  # a name, and the arguments
Result = tuple[Case, Any, Any]  # what the answer gave, and what is right


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A known mistake: its name, the hint that it gets, and the switches of the twin that make it."""

    name: str
    hint: str
    switches: dict[str, Any]


def mistake(name: str, hint: str, **switches: Any) -> Mistake:
    """Create a Mistake whose switches are keyword arguments."""
    return Mistake(name, hint, switches)


@dataclasses.dataclass(frozen=True)
class Part:
    """One function, class or value that an exercise asks for.

    `twin(*arguments, **switches)`: NumPy; without switches the right answer, with those of a mistake the wrong one. It
    may return None for a case in which a mistake makes no sense.
    `cases()`: from tiny to large, so that the first failure is a small one. A value has the one case ("", ()).
    `call(answer, *arguments)`: how an answer is used; a value is returned as it is.
    `laws`: further checks of a right answer, each called with it; they raise LawBroken.
    """

    name: str
    twin: Callable[..., Any]
    cases: Callable[[], Iterable[Case]]
    mistakes: tuple[Mistake, ...] = ()
    laws: tuple[Callable[[Any], None], ...] = ()
    call: Callable[..., Any] = lambda answer, *arguments: answer(*arguments) if callable(answer) else answer
    tolerance: float = 1e-5


@dataclasses.dataclass(frozen=True)
class Exercise:
    """Title, parts in order, and three hints, from a nudge to nearly the answer."""

    title: str
    parts: tuple[Part, ...]
    hints: tuple[str, str, str]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Verdict on one part. `state`: passed, blank, error, mistake or wrong; `mistakes`: their names."""

    part: str
    state: str
    message: str
    mistakes: tuple[str, ...] = ()


def exercise_of(stem: str) -> Exercise:
    """Import the Exercise of a file in course/mistakes, by its name without .py."""
    return importlib.import_module(f"course.mistakes.{stem}").EXERCISE


def check(exercise: Exercise, answers: ModuleType) -> list[Verdict]:
    """Grade all parts of an exercise."""
    return [check_part(part, answers) for part in exercise.parts]


def check_part(part: Part, answers: ModuleType) -> Verdict:
    """Grade one part: blank or error, then right and lawful, then the mistake that it equals, then the difference."""
    if not hasattr(answers, part.name):
        return Verdict(part.name, "blank", "missing from the file; `reset` brings it back.")
    answer = getattr(answers, part.name)
    results: list[Result] = []
    failed: list[tuple[Case, str]] = []
    with _time_limit(), np.errstate(all="ignore"):
        for case in part.cases():
            given = copy.deepcopy(case[1])
            try:
                result = part.call(answer, *given)
            except NotImplementedError:
                return Verdict(part.name, "blank", "waits for your answer.")
            except LEARNERS_ERRORS as error:
                failed.append((case, place_of_error(error, answers.__file__)))
                if isinstance(error, TimeoutError):
                    break
                continue
            if result is None or result is ...:
                problem = "it returns nothing: is a return missing?" if callable(answer) else "waits for your answer."
                return Verdict(part.name, "blank", problem)
            if not same(given, case[1], 0.0):
                return Verdict(part.name, "wrong", f"{_named(case)}it changes its arguments.")
            results.append((case, result, part.twin(*copy.deepcopy(case[1]))))
        wrong = [found for found in results if not same(found[1], found[2], part.tolerance)]
        if not wrong and not failed:
            return _check_laws(part, answer)
        found = diagnose(part, results, [case for case, _ in failed]) if wrong else ()
    if found:
        text = "\n  and: ".join(f"{mistake.name}. {mistake.hint}" for mistake in found)
        return Verdict(part.name, "mistake", text, tuple(mistake.name for mistake in found))
    if failed:
        case, place = failed[0]
        return Verdict(part.name, "error", f"{_named(case)}{place}.")
    return Verdict(part.name, "wrong", difference(*wrong[0]))


def diagnose(part: Part, results: list[Result], failed: list[Case]) -> tuple[Mistake, ...]:
    """Find the mistake, or the two mistakes, whose wrong twin gives the same results; empty if there is none.

    Last, a mistake is tried that an answer makes in most of its cases only: such as a mean over padding, with a line of
    its own for a text that is all padding.

    `failed`: cases in which the answer raised an error, such as a transpose of what is not square. There the twin must
    raise an error, too, or return None.
    """
    singles = [(mistake,) for mistake in part.mistakes]
    pairs = [
        pair
        for pair in itertools.combinations(part.mistakes, 2)
        if not pair[0].switches.keys() & pair[1].switches.keys()
    ]
    for mistakes in [*singles, *pairs]:
        switches = {name: value for mistake in mistakes for name, value in mistake.switches.items()}
        if _fits(part, switches, results) and all(_fails(part, switches, case) for case in failed):
            return mistakes
    for known in part.mistakes:
        if _fits_mostly(part, known.switches, results):
            if all(_fails(part, known.switches, case) for case in failed):
                return (known,)
    return ()


def _twin(part: Part, switches: dict[str, Any], case: Case) -> Any:
    try:
        return part.twin(*copy.deepcopy(case[1]), **switches)
    except (ValueError, IndexError, ZeroDivisionError, OverflowError) as error:  # it makes no sense in this case
        return error


def _fails(part: Part, switches: dict[str, Any], case: Case) -> bool:
    twin = _twin(part, switches, case)
    return twin is None or isinstance(twin, Exception)


def _fits(part: Part, switches: dict[str, Any], results: list[Result]) -> bool:
    differs = False
    for case, result, right in results:
        twin = _twin(part, switches, case)
        if isinstance(twin, Exception):
            return False
        if twin is None:
            continue
        if not same(result, twin, part.tolerance):
            return False
        differs = differs or not same(twin, right, part.tolerance)
    return differs


def _fits_mostly(part: Part, switches: dict[str, Any], results: list[Result]) -> bool:
    hits = spared = 0
    for case, result, right in results:
        twin = _twin(part, switches, case)
        if twin is None or isinstance(twin, Exception) or not same(result, twin, part.tolerance):
            if not same(result, right, part.tolerance):
                return False
            spared += 1
        elif not same(twin, right, part.tolerance):
            hits += 1
    return hits >= max(2, spared)


def _check_laws(part: Part, answer: Any) -> Verdict:
    for law in part.laws:
        try:
            law(answer)
        except AssertionError as error:
            return Verdict(part.name, "wrong", f"it breaks a law: {error}")
        except LEARNERS_ERRORS as error:
            return Verdict(part.name, "error", f"with the laws: {type(error).__name__}: {str(error)[:200]}")
    return Verdict(part.name, "passed", "passed")


def same(left: Any, right: Any, tolerance: float) -> bool:
    """Equality of two results: arrays and numbers within the tolerance, NaN equal to NaN, structures by parts."""
    if isinstance(right, dict):
        return (
            isinstance(left, dict)
            and left.keys() == right.keys()
            and all(same(left[key], right[key], tolerance) for key in right)
        )
    if isinstance(right, (list, tuple)) and (not right or not _is_number(right[0])):
        return (
            isinstance(left, (list, tuple))
            and len(left) == len(right)
            and all(same(a, b, tolerance) for a, b in zip(left, right, strict=True))
        )
    if right is None or isinstance(right, str):
        return isinstance(left, type(right)) and left == right
    try:
        left, right = np.asarray(left), np.asarray(right)
        if left.shape != right.shape:
            return False
        if right.dtype.kind in "biu" and left.dtype.kind in "biu":
            return bool(np.array_equal(left, right))
        left = left.astype(np.float64)
    except (TypeError, ValueError):
        return False
    return bool(np.allclose(left, right, rtol=tolerance, atol=tolerance, equal_nan=True))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def difference(case: Case, result: Any, expected: Any) -> str:
    """The first case that fails, in numbers that can be checked by hand if they are few; a value is not given away."""
    try:
        shapes = np.shape(result), np.shape(expected)
        is_small = np.size(expected) <= 12
    except ValueError:  # parts of several shapes, such as (a list, a number)
        shapes = (), ()
        is_small = True
    if shapes[0] != shapes[1]:
        return f"{_named(case)}the shape is {shapes[0]}, it should be {shapes[1]}."
    if not case[1]:
        return f"{_short(result)} is not right yet."
    if is_small:
        arguments = ", ".join(_short(argument) for argument in case[1])
        return f"{_named(case)}({arguments}) gives {_short(result)}, it should give {_short(expected)}."
    left, right = np.asarray(result, np.float64), np.asarray(expected, np.float64)
    gap = np.where(np.isnan(left) & np.isnan(right), 0, np.abs(left - right))
    gap = np.where(np.isnan(gap), np.inf, gap)
    index = tuple(int(i) for i in np.unravel_index(np.argmax(gap), gap.shape))
    share = np.mean(gap <= 1e-5)
    return (
        f"{_named(case)}at index {index} it is {left[index]:.5g}, it should be {right[index]:.5g}; "
        f"{share:.0%} of the values are right."
    )


def _named(case: Case) -> str:
    return f"in the case {case[0]!r}: " if case[0] else ""


def _short(value: Any) -> str:
    if callable(value):
        return getattr(value, "__name__", "a function")
    if isinstance(value, float):  # np.float64 as well, whose repr has its type
        return f"{value:.5g}"
    try:
        text = np.array2string(np.asarray(value), precision=4, separator=", ") if np.ndim(value) else repr(value)
    except ValueError:  # parts of several shapes
        text = ", ".join(map(_short, value)).join("()" if isinstance(value, tuple) else "[]")
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."


def place_of_error(error: BaseException, file: str) -> str:
    """The deepest line of the learner's file in an error, and what the error says."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = f"line {own[-1].lineno}: `{own[-1].line}`: " if own else ""
    if isinstance(error, SyntaxError) and error.filename == file:
        where, error = f"line {error.lineno}: `{(error.text or '').strip()}`: ", SyntaxError(error.msg)
    said = " ".join(str(error).split())
    return f"{where}{type(error).__name__}: {said[:200]}"


class _time_limit:
    """A limit for answers that never end. Works where there is SIGALRM, in the main thread."""

    def __enter__(self) -> None:
        self.before = signal.signal(signal.SIGALRM, self.stop)
        signal.alarm(SECONDS)

    def __exit__(self, *_: object) -> None:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, self.before)

    @staticmethod
    def stop(*_: object) -> None:
        raise TimeoutError(f"still running after {SECONDS} s: does a loop never end?")


def load(path: Path) -> ModuleType:
    """Run a learner's file as a module of its own. Its errors are the learner's."""
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    with _time_limit():
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)  # noqa: S102
    return module
