"""Notebooks of the lessons, for those who prefer them: JSON made from the lessons, never committed."""

import json
import os
import re
from pathlib import Path

from course import LESSONS, render

SETUP = """# Made from {name} by `make notebooks`: change the lesson, not this file.
import os
import sys

os.environ["TRANSFORMER_JAX_TUNING"] = "off"
sys.path.insert(0, {lessons!r})
from course import lesson

lesson.current.name = {stem!r}"""


def notebook_of(path: Path, folder: Path) -> dict:
    """A lesson as a notebook that works from inside `folder`: links lead from there."""
    to_lessons = Path(os.path.relpath(LESSONS, folder.resolve())).as_posix()
    setup = SETUP.format(name=path.name, lessons=str(LESSONS), stem=path.stem)
    found = [_cell("code", setup)]
    for cell in render.cells(path.read_text(encoding="utf-8")):
        if cell.kind == "markdown":
            text = re.sub(r"\]\((?!https?:|#)", f"]({to_lessons}/", cell.text)
            found.append(_cell("markdown", text))
        else:
            found.append(_cell("code", cell.text))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"cells": found, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 4}


def _cell(kind: str, text: str) -> dict:
    cell = {"cell_type": kind, "metadata": {}, "source": text.splitlines(keepends=True)}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def write(paths: list[Path], folder: Path) -> None:
    """Write a notebook of each lesson into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        text = json.dumps(notebook_of(path, folder), indent=1, ensure_ascii=False)
        (folder / f"{path.stem}.ipynb").write_text(text + "\n", encoding="utf-8")
