"""What README shows is true: its Python runs, its table is the one in the code."""

import re
from pathlib import Path

import pytest

from transformer_jax.nn.compatibility import compatibility_table

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SNIPPETS = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "runs/" not in code]


@pytest.mark.parametrize("i", range(len(SNIPPETS)))
def test_the_python_of_the_readme_runs(i):
    exec(compile(SNIPPETS[i], f"README snippet {i}", "exec"), {})  # noqa: S102 - our own text


def test_the_table_in_the_readme_is_the_one_in_the_code():
    assert compatibility_table() in README
