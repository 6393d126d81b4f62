"""The grader of the course, graded: blanks and constants fail, solutions pass, each mistake gets its own name.

`python -m pytest tests/test_exercises.py -k 04` tries one exercise.
"""

import dataclasses
import functools
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.course import EXERCISES, LESSONS, SOLUTIONS, solution_of

from course import blanks, grading  # isort: skip  (helpers.course puts it on the path)

STEMS = sorted(path.stem for path in (LESSONS / "course" / "mistakes").glob("exercise_*.py"))
each_exercise = pytest.mark.parametrize("stem", STEMS)
solved = functools.cache(solution_of)


def answered(part, answer):
    """The part, with an answer that gives answer(*arguments), whether a function, a class or a value is asked for."""
    return dataclasses.replace(part, call=lambda _, *arguments: answer(*arguments))


def verdicts(stem, make_answer):
    """(part, verdict) of each part whose answer is make_answer(part); None: there is nothing to try."""
    for part in grading.exercise_of(stem).parts:
        answer = make_answer(part)
        if answer is not None:
            yield part, grading.check_part(answered(part, answer), solved(stem))


def mapped(change, result):
    """A result with `change` applied to its numbers; names stay."""
    if isinstance(result, dict):
        return {name: mapped(change, value) for name, value in result.items()}
    if isinstance(result, (list, tuple)) and len(result) and not np.isscalar(result[0]):
        return type(result)(mapped(change, value) for value in result)
    if result is None or isinstance(result, (str, bool)) or np.asarray(result).dtype.kind not in "biuf":
        return result
    return change(result)


@each_exercise
def test_the_blank_is_made_from_the_solution(stem):
    solution = (SOLUTIONS / f"{stem}.py").read_text(encoding="utf-8")
    file = EXERCISES / f"{stem}.py"
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", file, SOLUTIONS], cwd=EXERCISES)
    if changed.returncode == 1 and file.read_text(encoding="utf-8") != blanks.blank_of(solution):
        pytest.skip(f"{file.name} has an answer, or python -m lessons reset {stem[9:11]} is due")
    assert file.read_text(encoding="utf-8") == blanks.blank_of(solution), f"python -m lessons reset {stem[9:11]}"


@each_exercise
def test_a_blank_is_not_passed(stem, tmp_path):
    blank = tmp_path / f"{stem}.py"
    blank.write_text(blanks.blank_of((SOLUTIONS / f"{stem}.py").read_text(encoding="utf-8")), encoding="utf-8")
    found = grading.check(grading.exercise_of(stem), grading.load(blank))
    assert {verdict.part: verdict.state for verdict in found if verdict.state != "blank"} == {}


@each_exercise
def test_its_solution_passes(stem):
    found = grading.check(grading.exercise_of(stem), solved(stem))
    assert {verdict.part: verdict.message for verdict in found if verdict.state != "passed"} == {}
    assert [part.name for part in grading.exercise_of(stem).parts] == [verdict.part for verdict in found] != []


@each_exercise
def test_an_answer_that_returns_nothing_is_blank(stem):
    assert [
        part.name for part, verdict in verdicts(stem, lambda part: lambda *_: None) if verdict.state != "blank"
    ] == []


CONSTANTS = {
    "0": lambda part: lambda *_: 0,
    "0.0": lambda part: lambda *_: 0.0,
    "1": lambda part: lambda *_: 1,
    "an empty list": lambda part: lambda *_: [],
    "an empty text": lambda part: lambda *_: "",
    "zeros": lambda part: lambda *arguments: mapped(np.zeros_like, part.twin(*arguments)),
    "ones": lambda part: lambda *arguments: mapped(np.ones_like, part.twin(*arguments)),
    "NaN": lambda part: lambda *arguments: mapped(lambda x: np.full(np.shape(x), np.nan), part.twin(*arguments)),
    "its first argument": lambda part: (lambda *arguments: arguments[0]) if has_arguments(part) else None,
    "its last argument": lambda part: (lambda *arguments: arguments[-1]) if has_arguments(part) else None,
    "the answer of the first case": lambda part: first_case(part) if has_arguments(part) else None,
}


def has_arguments(part):
    return next(iter(part.cases()))[1] != ()


def first_case(part):
    result = part.twin(*next(iter(part.cases()))[1])
    return lambda *_: result


@each_exercise
@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_is_not_passed(stem, name):
    with np.errstate(all="ignore"):
        passed = [part.name for part, verdict in verdicts(stem, CONSTANTS[name]) if verdict.state == "passed"]
    assert passed == []


TYPES = ["float32", "jax", "lists"]


@each_exercise
@pytest.mark.parametrize("change", [np.float32, jnp.asarray, lambda x: np.asarray(x).tolist()], ids=TYPES)
def test_a_right_answer_in_another_type_is_passed(stem, change):
    def same_numbers(part):
        return lambda *arguments: mapped(change, part.twin(*arguments))

    with np.errstate(all="ignore"):
        found = {
            part.name: verdict.message for part, verdict in verdicts(stem, same_numbers) if verdict.state != "passed"
        }
    assert found == {}


@each_exercise
def test_each_mistake_gets_its_own_name(stem):
    wrong = {}
    for part in grading.exercise_of(stem).parts:
        for mistake in part.mistakes:

            def answer(*arguments, part=part, mistake=mistake):
                result = part.twin(*arguments, **mistake.switches)
                return part.twin(*arguments) if result is None else result

            with np.errstate(all="ignore"):
                verdict = grading.check_part(answered(part, answer), solved(stem))
            if verdict.mistakes != (mistake.name,):
                wrong[part.name, mistake.name] = verdict.state, verdict.mistakes or verdict.message
    assert wrong == {}


@each_exercise
def test_it_has_three_hints_and_its_mistakes_have_names_and_hints(stem):
    exercise = grading.exercise_of(stem)
    names = [(part.name, mistake.name) for part in exercise.parts for mistake in part.mistakes]
    hints = [mistake.hint for part in exercise.parts for mistake in part.mistakes]
    assert len(set(names)) == len(names)
    assert [hint for hint in [*hints, *exercise.hints] if len(hint) < 15] == []
    assert len(set(exercise.hints)) == 3
    title = (SOLUTIONS / f"{stem}.py").read_text(encoding="utf-8").splitlines()[0]
    assert title.startswith(f'"""Exercise {stem[9:11]}: ')


def test_hints_are_many_and_each_belongs_to_one_mistake():
    names = {}
    for stem in STEMS:
        for part in grading.exercise_of(stem).parts:
            hints = [mistake.hint for mistake in part.mistakes]
            assert len(set(hints)) == len(hints), (stem, part.name)
            for mistake in part.mistakes:
                names.setdefault(mistake.hint, set()).add(mistake.name)
    assert {hint: shared for hint, shared in names.items() if len(shared) > 1} == {}
    assert len(names) >= 120


# The grader itself, with an exercise of its own


def mean(x, axis, *, kind="mean", along=None):
    x, axis = np.asarray(x, float), axis if along is None else along
    return {"mean": np.mean, "sum": np.sum, "median": np.median}[kind](x, axis=axis)


SUM = grading.Mistake("a sum", "Divide by the number of values.", {"kind": "sum"})
AXIS = grading.Mistake("the first axis", "Use the axis that is asked for.", {"along": 0})
MEAN = grading.Part(
    "mean", mean, lambda: [("one row", ([[1.0, 3.0]], 1)), ("two rows", ([[1.0, 2.0], [5.0, 10.0]], 1))], (SUM, AXIS)
)


def graded(tmp_path, source):
    file = tmp_path / "exercise.py"
    file.write_text(source)
    return grading.check_part(MEAN, grading.load(file))


@pytest.mark.parametrize(
    "source, state, message",
    [
        ("", "blank", "missing from the file"),
        ("def mean(x, axis):\n    raise NotImplementedError", "blank", "waits for your answer"),
        ("def mean(x, axis):\n    x", "blank", "is a return missing?"),
        ("mean = ...", "blank", "waits for your answer"),
        ("def mean(x, axis):\n    return x.mean(axis)", "error", "line 2: `return x.mean(axis)`: AttributeError"),
        ("def mean(x):\n    return 0", "error", "TypeError"),
        ("def mean(x, axis):\n    x.append(1)\n    return 0", "wrong", "changes its arguments"),
        ("import numpy as np\ndef mean(x, axis):\n    return np.mean(x, axis)", "passed", "passed"),
        (
            "import numpy as np\ndef mean(x, axis):\n    return np.mean(x)",
            "wrong",
            "'one row': the shape is (), it should",
        ),
        ("import numpy as np\ndef mean(x, axis):\n    return np.median(x, axis) + 1", "wrong", "it should give [2.]"),
        ("import sys\ndef mean(x, axis):\n    sys.exit(0)", "error", "SystemExit"),
    ],
)
def test_a_verdict_says_in_a_line_what_is_to_be_done(tmp_path, source, state, message):
    verdict = graded(tmp_path, source)
    assert (verdict.state, verdict.mistakes) == (state, ())
    assert message in verdict.message and "\n" not in verdict.message


def test_two_mistakes_at_once_are_both_named(tmp_path):
    source = "import numpy as np\ndef mean(x, axis):\n    return np.sum(x, 0)"
    verdict = graded(tmp_path, source)
    assert verdict.mistakes == ("a sum", "the first axis")
    assert SUM.hint in verdict.message and AXIS.hint in verdict.message


def test_a_mistake_is_named_even_if_it_raises_an_error_in_other_cases(tmp_path):
    def transposed(x, y, *, turn=False):
        return np.add(x, np.transpose(y) if turn else y)

    square = [[1.0, 2.0], [3.0, 5.0]]
    part = grading.Part(
        "add",
        transposed,
        lambda: [("wide", ([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]],) * 2), ("square", (square, square))],
        (grading.Mistake("transposed", "Without the transpose.", {"turn": True}),),
    )
    file = tmp_path / "exercise.py"
    file.write_text("import numpy as np\ndef add(x, y):\n    return x + np.transpose(y)")
    assert grading.check_part(part, grading.load(file)).mistakes == ("transposed",)
    file.write_text("import numpy as np\ndef add(x, y):\n    return np.reshape(x, 4) + y")
    assert grading.check_part(part, grading.load(file)).state == "error"


def test_a_mistake_is_named_even_if_a_case_of_it_is_answered_rightly(tmp_path):
    cases = [("", ([[1.0, 3.0]], 1)), ("", ([[1.0, 2.0], [5.0, 10.0]], 1)), ("", ([[9.0, 1.0, 5.0]], 1))]
    part = dataclasses.replace(MEAN, cases=lambda: cases)
    file = tmp_path / "exercise.py"
    for condition, names in (("len(x[0]) > 2", ("a sum",)), ("len(x) < 2", ()), ("len(x[0]) == 2", ())):
        file.write_text(
            f"import numpy as np\ndef mean(x, axis):\n    return (np.mean if {condition} else np.sum)(x, axis)"
        )
        assert grading.check_part(part, grading.load(file)).mistakes == names


def test_a_value_is_not_given_away(tmp_path):
    file = tmp_path / "exercise.py"
    file.write_text("answer = 3")
    part = grading.Part("answer", lambda: 42, lambda: [("", ())])
    assert grading.check_part(part, grading.load(file)).message == "3 is not right yet."


def test_a_loop_that_never_ends_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(grading, "SECONDS", 1)
    verdict = graded(tmp_path, "def mean(x, axis):\n    while True:\n        pass")
    assert verdict.state == "error" and "TimeoutError" in verdict.message and "line 2: " in verdict.message


def test_marks_of_a_solution_become_open_questions():
    solution = "def f(x):\n    # answer\n    y = x\n    return y\n    # end\n\n\n# answer: N = None\nN = 3\n# end\n"
    blank = "def f(x):\n    raise NotImplementedError  # your answer\n\n\nN = None\n"
    assert blanks.blank_of(solution) == blank
    for text in ("# end\n", "# answer\n", "# answer\n# answer\n# end\n"):
        with pytest.raises(AssertionError):
            blanks.blank_of(text)


def test_an_answer_may_not_change_its_arguments_even_when_it_is_right(tmp_path):
    source = "import numpy as np\ndef mean(x, axis):\n    y = np.mean(x, axis)\n    x[0] = [0]\n    return y"
    assert graded(tmp_path, source).state == "wrong"


def test_exercises_solutions_and_mistakes_belong_together():
    def stems(folder: Path):
        return sorted(path.stem for path in folder.glob("*.py"))

    assert stems(EXERCISES) == stems(SOLUTIONS) == STEMS
