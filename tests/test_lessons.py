"""Pages of the course: each is its lesson's, links lead somewhere, sizes are small; and the course's own commands.

Lessons run in CI, not here: `python -m lessons run all`. `-k 04` tries the page of one lesson.
"""

import ast
import contextlib
import importlib
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys

import pytest
from helpers.course import EXERCISES, LESSONS, ROOT
from helpers.pages import broken_links, links, without_code

from course import claims, lesson, notebooks, render  # isort: skip  (helpers.course puts it on the path)

STEMS = sorted(path.stem for path in LESSONS.glob("[0-9][0-9]_*.py"))
PAGES = sorted(LESSONS.glob("*.md"))
each_lesson = pytest.mark.parametrize("stem", STEMS)


def source_of(stem):
    return (LESSONS / f"{stem}.py").read_text(encoding="utf-8")


def page_of(stem):
    return (LESSONS / f"{stem}.md").read_text(encoding="utf-8")


# Page = source


@each_lesson
def test_a_page_has_the_prose_and_the_code_of_its_lesson_in_order(stem):
    page = page_of(stem)
    assert page.rstrip().endswith(render.mark_of(source_of(stem))), f"python -m lessons render {stem[:2]}"
    end = 0
    for cell in render.cells(source_of(stem)):
        start = page.find(render.fixed_part(cell), end)
        assert start >= 0, cell
        end = start + len(render.fixed_part(cell))


@each_lesson
def test_source_code_on_a_page_is_that_of_the_library(stem):
    title = r"# ([\w/]+)\.py: ([\w.]+)"
    shown = [
        block for block in re.findall(r"^```python\n(.*?)```$", page_of(stem), re.M | re.S) if re.match(title, block)
    ]
    for source in (part for block in shown for part in re.split(rf"^(?={title}$)", block, flags=re.M)[::3] if part):
        file, names = re.match(title, source).groups()
        thing = importlib.import_module(file.replace("/", "."))
        for name in names.split("."):
            thing = getattr(thing, name)
        with contextlib.redirect_stdout(io.StringIO()) as present:
            lesson.show(thing)
        assert present.getvalue().rstrip() == source.rstrip()


@each_lesson
def test_a_lesson_can_be_read_and_run_alone(stem):
    source, page = source_of(stem), page_of(stem)
    imported = [
        name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    ]
    assert imported.index("course") < next((i for i, name in enumerate(imported) if name.startswith("jax")), 99)
    assert [name for name in imported if re.match(r"(lessons\.)?(\d|examples|exercises)", name)] == []
    num_predictions = page.count("\n> **Predict.** ")
    assert num_predictions == page.count("\noutcome: ") >= (stem[:2] != "00") * 3
    ends = ["## Change it", "## Check yourself", "## Where it lives", "## Papers"]
    places = [page.find(f"\n{heading}\n") for heading in ends]
    assert places == sorted(places) and places[0] > 0, dict(zip(ends, places, strict=True))


# Links, pictures, sizes


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page):
    assert broken_links(page) == []


@each_lesson
def test_a_page_is_small_and_its_pictures_are_described(stem):
    assert len(page_of(stem).encode()) <= 60_000
    shown = re.findall(r"!\[(.*)\]\(pictures/([\w.]+)\)", page_of(stem))
    assert [name for alt, name in shown if len(alt) < 25] == []
    files = sorted(path.name for path in (LESSONS / "pictures").glob(f"{stem}_*.png"))
    assert sorted(name for _, name in shown) == files
    assert [name for name in files if (LESSONS / "pictures" / name).stat().st_size > 60_000] == []


def test_the_course_is_small_and_has_no_other_files():
    tracked = [path for path in LESSONS.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in tracked) <= 4_000_000
    answers = [path for path in tracked if path.parent == EXERCISES and path.suffix == ".txt"]  # of `reset`
    assert {path.suffix for path in tracked if path not in answers} <= {".py", ".md", ".png"}
    assert {path.name[:2] for path in LESSONS.glob("pictures/*")} <= {stem[:2] for stem in STEMS}


# Claims


def test_claims_are_generated_from_the_pages():
    assert (LESSONS / "claims.md").read_text(encoding="utf-8") == claims.table(LESSONS), "python -m lessons claims"


def test_every_promise_has_a_place_or_a_reason():
    text = (LESSONS / "promises.md").read_text(encoding="utf-8")
    rows = [row.strip("| ").split(" | ") for row in re.findall(r"^\| .* \|$", text, flags=re.M)]
    rows = [row for row in rows if row != ["promised", "where"]]
    assert len(rows) == 226 and {len(row) for row in rows} == {2}
    assert [row for row in rows if not re.search(r"\]\(|^not built: because |`make ", row[1])] == []


# The whole


NAMES = """00_jax_in_ten_minutes 01_attention_mechanism 02_self_attention 03_multi_head_attention 04_positional_encoding
    05_feedforward_networks 06_transformer_architecture 07_full_transformer_encoder 08_transformer_decoder
    09_complete_transformer 10_transformer_training 11_relative_positions 12_attention_optimizations 13_modern_blocks
    14_scaling_laws 15_fine_tuning 16_looking_inside 17_the_paper""".split()


def test_lessons_examples_and_exercises_are_those_that_were_promised():
    assert STEMS == NAMES
    examples = [path.stem for path in sorted((LESSONS / "examples").glob("*.py"))]
    assert [name[:10] for name in examples] == [f"example_{number:02d}" for number in range(1, 7)]
    exercises = [path.stem for path in sorted(EXERCISES.glob("*.py"))]
    assert [name[:11] for name in exercises] == [f"exercise_{number:02d}" for number in range(1, 15)]
    assert {"exercise_01_attention", "exercise_02_self_attention", "exercise_03_transformer"} <= set(exercises)
    linked = set(links(LESSONS / "README.md"))
    assert {f"{name}.md" for name in NAMES} | {f"exercises/{name}.py" for name in exercises} <= linked
    assert sum(page_of(stem).count("\n> **Predict.** ") for stem in STEMS) >= 40


# Commands, on a copy of the course


TINY = """# %% [markdown]
# # 98 A tiny lesson
# Prose with a formula $x$.

# %%
from course import outcome, predict, seed, steps

# %%
predict("How many steps?", low=9, high=11)

# %%
outcome(steps(10) + seed())
"""
TINY_PAGE = """# 98 A tiny lesson
Prose with a formula $x$.

```python
from course import outcome, predict, seed, steps
```

> **Predict.** How many steps?

```python
outcome(steps(10) + seed())
```

<details>
<summary>The outcome</summary>

```text
outcome: 10 (expected: 9 to 11)
```

</details>

"""
SOLUTION = '''"""Exercise 98: a tiny exercise."""


def double(x):
    # answer
    return 2 * x
    # end
'''
MISTAKES = """
from course.grading import Exercise, Mistake, Part


def double(x, *, power=False):
    return x**2 if power else 2 * x


SQUARED = Mistake("squared", "Add it to itself.", {"power": True})
PARTS = (Part("double", double, lambda: [("one", (1,)), ("three", (3,))], (SQUARED,)),)
EXERCISE = Exercise("tiny", PARTS, ("first hint", "second hint", "third hint"))
"""


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A copy of the course with one more lesson and one more exercise."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(LESSONS, folder / "lessons", ignore=shutil.ignore_patterns("pictures", "__pycache__", "*.txt"))
    (folder / "lessons" / "98_tiny.py").write_text(TINY)
    exercises = folder / "lessons" / "exercises"
    for path in (exercises / "solutions", folder / "lessons" / "course" / "mistakes"):
        path.mkdir(parents=True, exist_ok=True)
    (exercises / "solutions" / "exercise_98_tiny.py").write_text(SOLUTION)
    (folder / "lessons" / "course" / "mistakes" / "exercise_98_tiny.py").write_text(MISTAKES)
    return folder


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}


def course(folder, *arguments):
    """`python -m lessons ARGUMENTS` in a copy: exit code and what it prints."""
    command = [sys.executable, "-m", "lessons", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def test_an_exercise_on_the_command_line(copied):
    file = copied / "lessons" / "exercises" / "exercise_98_tiny.py"
    code, printed = course(copied, "check", "98")
    assert (code, printed.splitlines()[1:]) == (1, ["  the file is missing: python -m lessons reset 98"])
    assert course(copied, "reset", "98") == (0, f"lessons/exercises/{file.name} is blank\n")
    code, printed = course(copied, "check", "98")
    assert code == 1 and "double: waits for your answer" in printed
    assert (
        course(copied, "check", f"lessons/exercises/{file.name}") == course(copied, "check", file.stem) == (1, printed)
    )
    for answer, expected in {
        "return x**2": "  double: squared. Add it to itself.",
        "return x": "  double: in the case 'one': (1) gives 1, it should give 2.",
        "return (": "  the file does not run: line 5: `return (`: SyntaxError: '(' was never closed",
        "return x / 0": "  double: in the case 'one': line 5: `return x / 0`: ZeroDivisionError: division by zero.",
    }.items():
        file.write_text(
            SOLUTION.replace("    # answer\n", "").replace("    # end\n", "").replace("return 2 * x", answer)
        )
        code, printed = course(copied, "check", "98")
        assert (code, printed.splitlines()[1:]) == (1, [expected])
    begun = file.read_text()
    assert "exercise_98_tiny.1.txt" in course(copied, "reset", "98")[1]
    assert file.with_suffix(".1.txt").read_text() == begun
    file.write_text("def other(x):\n    return x\n")
    assert "double: missing from the file" in course(copied, "check", "98")[1]
    code, printed = course(copied, "solution", "98")
    assert code == 0 and "return 2 * x" in printed and "# answer" not in printed
    file.write_text(printed)
    assert course(copied, "check", "98") == (
        0,
        f"lessons/exercises/{file.name}\n  double: passed\n  Exercise 98 is solved.\n",
    )
    assert course(copied, "hint", "98") == (0, "first hint\nMore: python -m lessons hint 98 2\n")
    assert course(copied, "hint", "98", "3") == (0, "third hint\n")


def test_lessons_on_the_command_line(copied):
    code, printed = course(copied, "list")
    assert code == 0 and "\n  98  A tiny lesson\n" in printed and "\n  98  a tiny exercise" in printed
    assert [stem for stem in STEMS if f"\n  {stem[:2]}  " not in printed] == []
    assert course(copied, "run", "98") == (0, "outcome: 10 (expected: 9 to 11)\n")
    code, printed = course(copied, "run", "98", "--seed=2")
    assert code == 1 and "How many steps?: 12 is outside of its band, 9 to 11" in printed
    assert course(copied, "run", "98", "--steps=0.1", "--seed=2") == (0, "outcome: 3 (fewer steps: no band)\n")
    code, printed = course(copied, "run", "77")
    assert (code, printed) == (2, "lesson '77': there is none; `python -m lessons list` shows all.\n")
    without_packages = subprocess.run(
        [sys.executable, "-S", "-m", "lessons", "list"], cwd=copied, env=environment(), capture_output=True, text=True
    )
    assert without_packages.returncode == 2 and "has no JAX. In the folder of the clone" in without_packages.stderr
    assert without_packages.stderr.count("\n") == 1, without_packages.stderr
    assert course(copied, "render", "98")[0] == 0
    assert (copied / "lessons" / "98_tiny.md").read_text() == TINY_PAGE + render.mark_of(TINY) + "\n"


def test_pages_show_commands_that_exist(copied):
    code, printed = course(copied, "--help")
    known = set(re.findall(r"^    ([a-z]+) ", printed, flags=re.M))
    shown = {
        name
        for page in [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "ARCHITECTURE.md"]
        for name in re.findall(r"python -m lessons ([a-z]+)", page.read_text(encoding="utf-8"))
    }
    assert code == 0 and {"list", "run", "check", "hint", "solution", "reset"} <= shown <= known


def test_a_reader_is_asked_for_a_prediction_on_a_terminal(copied):
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "lessons", "run", "98", "--ask"]
    process = subprocess.Popen(command, cwd=copied, env=environment(), stdin=end, stdout=end, stderr=end)
    os.close(end)
    os.write(terminal, b"ten\nnan\n9.5\n")
    printed = b""
    with contextlib.suppress(OSError):  # its end, on Linux
        while piece := os.read(terminal, 1000):
            printed += piece
    os.close(terminal)
    assert process.wait(timeout=60) == 0
    printed = printed.decode().replace("\r\n", "\n")
    assert "Predict: How many steps?\n" in printed
    assert "'ten' is not a number" in printed and "'nan' is not a number" in printed
    assert printed.endswith("your guess: 9.5\noutcome: 10 (expected: 9 to 11)\n")


@each_lesson
def test_a_notebook_has_the_cells_of_its_lesson_and_links_that_work_from_where_it_is(stem):
    folder = ROOT / "build" / "notebooks"
    found = notebooks.notebook_of(LESSONS / f"{stem}.py", folder)["cells"]
    cells = list(render.cells(source_of(stem)))
    assert len(found) == len(cells) + 1
    for cell, made in zip(cells, found[1:], strict=True):
        text = "".join(made["source"])
        assert made["cell_type"] == ("markdown" if cell.kind == "markdown" else "code")
        if cell.kind != "markdown":
            assert text == cell.text
        else:
            local = r"\]\((?!https?:|#)([^)#\s]+)"
            targets = [(folder / target).resolve() for target in re.findall(local, without_code(text))]
            assert targets == [(LESSONS / target).resolve() for target in re.findall(local, without_code(cell.text))]


def test_notebooks_on_the_command_line(copied):
    assert course(copied, "notebooks", "cells")[0] == 0
    found = json.loads((copied / "cells" / "98_tiny.ipynb").read_text(encoding="utf-8"))
    code = "".join("".join(cell["source"]) + "\n" for cell in found["cells"] if cell["cell_type"] == "code")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment())
    assert done.stdout == "outcome: 10 (expected: 9 to 11)\n", done.stderr
