"""Pages of the lessons: the cells of a lesson run in order, and what a reader sees becomes Markdown.

A page has the prose and the code of its lesson word for word, what the code printed, and its pictures. An outcome is
folded away, since the reader is to guess it first.
"""

import ast
import contextlib
import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from course import LESSONS, lesson

MARK = "<!-- source: sha256 {} -->"


class Cell(NamedTuple):
    """A cell of a lesson: "markdown", "code" or "predict", its text, and the number of its first line."""

    kind: str
    text: str
    line: int


def cells(source: str) -> Iterator[Cell]:
    """Split a lesson at its `# %%` lines."""
    starts = [match for match in re.finditer(r"^# %%(.*)\n", source, flags=re.M)]
    for start, end in zip(starts, [match.start() for match in starts[1:]] + [len(source)], strict=True):
        body = source[start.end() : end]
        line = source.count("\n", 0, start.end()) + 1
        if "[markdown]" in start[1]:
            prose = "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines())
            yield Cell("markdown", prose, line)
        else:
            line += len(body) - len(body.lstrip("\n"))
            kind = "predict" if body.lstrip().startswith("predict(") else "code"
            yield Cell(kind, body.strip("\n"), line)


def fixed_part(cell: Cell) -> str:
    """Part of a page that is the same on any machine: the prose, the code, or the question without its band."""
    if cell.kind == "markdown":
        return cell.text
    if cell.kind == "code":
        return f"```python\n{cell.text}\n```"
    call = ast.parse(cell.text).body
    assert len(call) == 1, f"line {cell.line}: predict(...) stands alone in its cell"
    return f"> **Predict.** {ast.literal_eval(call[0].value.args[0])}"


def mark_of(source: str) -> str:
    """Last line of a page: the digest of the lesson that it was rendered from."""
    return MARK.format(hashlib.sha256(source.encode()).hexdigest())


def run_cell(cell: Cell, names: dict, file: Path) -> str:
    """Run a cell as a notebook would, and return what it printed; the value of its last expression is printed too."""
    tree = ast.parse("\n" * (cell.line - 1) + cell.text)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(tree, str(file), "exec"), names)  # noqa: S102
        if last is not None:
            value = eval(compile(ast.Expression(last.value), str(file), "eval"), names)  # noqa: S307
            if value is not None:
                print(value)
    return out.getvalue()


def render(path: Path) -> None:
    """Run a lesson and write its page and its pictures beside it."""
    source = path.read_text()
    pictures = LESSONS / "pictures"
    pictures.mkdir(exist_ok=True)
    for old in pictures.glob(f"{path.stem}_*.png"):
        old.unlink()
    lesson.current = lesson.Lesson(name=path.stem, pictures=pictures)
    names = {"__name__": "__main__", "__file__": str(path)}
    page = []
    for cell in cells(source):
        page.append(fixed_part(cell))
        if cell.kind == "markdown":
            continue
        num_outcomes = lesson.current.num_outcomes
        printed = "\n\n".join(blocks(run_cell(cell, names, path)))
        if lesson.current.num_outcomes > num_outcomes:
            page.append(f"<details>\n<summary>The outcome</summary>\n\n{printed}\n\n</details>")
        elif printed:
            page.append(printed)
    path.with_suffix(".md").write_text("\n\n".join([*page, mark_of(source)]) + "\n")


def blocks(printed: str) -> Iterator[str]:
    """Markdown of what a cell printed: pictures, source code of the library, and text."""
    for part in re.split(r"^(!\[.*\]\(pictures/.*\))\n", printed, flags=re.M):
        if part.startswith("!["):
            yield part
        elif part.strip():
            language = "python" if re.match(r"# [\w/]+\.py: ", part) else "text"
            yield f"```{language}\n{part.rstrip()}\n```"
