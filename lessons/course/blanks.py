"""Blanks of the exercises, made from their solutions."""

from collections.abc import Iterable, Iterator


def blank_of(solution: str) -> str:
    """Text of an exercise: each answer of its solution, from `# answer` to `# end`, gives way to an open question.

    `# answer: TEXT` leaves TEXT in its place, for values; `# answer` alone leaves a NotImplementedError.
    """
    return "\n".join(_blank_lines(solution.split("\n")))


def _blank_lines(lines: Iterable[str]) -> Iterator[str]:
    is_answer = False
    for line in lines:
        stripped = line.strip()
        if stripped == "# end":
            assert is_answer, "# end without # answer"
            is_answer = False
        elif stripped.startswith("# answer"):
            assert not is_answer, "# answer inside an answer"
            is_answer = True
            indent = line[: len(line) - len(line.lstrip())]
            left = stripped.removeprefix("# answer").removeprefix(":").strip()
            yield indent + (left or "raise NotImplementedError  # your answer")
        elif not is_answer:
            yield line
    assert not is_answer, "# answer without # end"
