"""Claims about Transformers that courses and tutorials make, each beside the outcome of a lesson that tested it.

`python -m lessons claims` writes lessons/claims.md: the numbers are read from the pages of the lessons.
"""

import re
from pathlib import Path
from typing import NamedTuple


class Claim(NamedTuple):
    """A claim, the verdict, and its tests: pairs of a lesson and the question of one of its predictions.

    `name`: its anchor in claims.md.
    """

    name: str
    claim: str
    verdict: str
    tests: tuple[tuple[str, str], ...]


CLAIMS: tuple[Claim, ...] = ()

HEAD = """# What is said about Transformers, tested

Sentences that courses and tutorials repeat, beside what a lesson found when it tried them. Each number was computed by
the lesson, in seconds, on a small model; its band, in brackets, held for three seeds. Follow the link to see the code,
and to change it. A small model can refute "always" and "never". It cannot prove what a large model does; where that
matters, the verdict says so.

| what is said | verdict | what was measured |
|---|---|---|
"""
TAIL = """
This page is written by `python -m lessons claims` from `lessons/course/claims.py` and the pages of the lessons.
"""


def outcome_of(page: str, question: str) -> str:
    """The outcome, with its band, that a page of a lesson has for a question. LookupError: it does not ask it."""
    asked = f"> **Predict.** {question}\n"
    start = page.find(asked)
    if start < 0:
        raise LookupError(question)
    found = re.search(r"^outcome: (\S+) \(expected: (.*)\)$", page[start:], flags=re.M)
    return f"**{found[1]}** ({found[2]})"


def table(lessons: Path) -> str:
    """Text of claims.md."""
    rows = []
    for number, claim in enumerate(CLAIMS, 1):
        measured = []
        for stem, question in claim.tests:
            page = (lessons / f"{stem}.md").read_text(encoding="utf-8")
            measured.append(f"[{stem[:2]}]({stem}.md) {question} {outcome_of(page, question)}")
        cells = f'<a id="{claim.name}"></a>{number}. {claim.claim}', claim.verdict, "<br>".join(measured)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return HEAD + "".join(rows) + TAIL
