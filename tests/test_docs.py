"""README and docs: their Python runs, their commands have the flags that they show, their links lead somewhere."""

import dataclasses
import importlib
import importlib.util
import json
import re
import shutil
from pathlib import Path

import jax
import pytest
from helpers.commands import command
from helpers.pages import broken_links

import transformer_jax as tj
from train.config import Config
from transformer_jax.__main__ import COMMANDS
from transformer_jax.models import GPT, init_params
from transformer_jax.nn.compatibility import compatibility_table
from transformer_jax.schema import config_fields

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
USER_PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
COURSE = ["lessons/README.md", "lessons/GETTING_STARTED.md"]
PAGES = [*USER_PAGES, *COURSE, "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "BUILD_NOTES.md"]
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
SNIPPETS = [(page, i) for page in USER_PAGES for i in range(TEXTS[page].count("```python\n"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what the examples name: a Hugging Face model in models/, a run in runs/."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(FIXTURES / "gpt2", folder / "models" / "gpt2")
    shutil.copytree(FIXTURES / "adapters" / "gpt2_dora", folder / "models" / "my_adapter")
    tiny = tj.from_pretrained(folder / "models" / "gpt2")
    model = GPT(dataclasses.replace(tiny.config, max_len=256))  # room for the texts that the examples generate
    run = dataclasses.replace(tiny, model=model, config=model.config, params=init_params(model, jax.random.key(0)))
    tj.save(dataclasses.replace(run, hf_config=None), folder / "runs" / "a")
    return folder


@pytest.mark.parametrize("page, i", SNIPPETS)
def test_the_python_of_a_page_runs(page, i, folder, monkeypatch):
    monkeypatch.chdir(folder)
    code = re.findall(r"```python\n(.*?)```", TEXTS[page], re.DOTALL)[i]
    variables = {}
    exec(compile(code, f"{page}, example {i}", "exec"), variables)  # noqa: S102 - our own text
    if "get_config" in variables:
        assert isinstance(Config.from_dict(variables["get_config"]()), Config)
    assert variables


def shown_commands():
    """(page, command name, its flags) for each command line of the pages."""
    for page in PAGES:
        for line in TEXTS[page].replace("\\\n", " ").splitlines():
            for found in re.finditer(r"(?:python -m transformer_jax|(?<![\w-])transformer-jax) (\w+)((?: .*)?)", line):
                flags = re.findall(r"(?<=\s)--([\w.]+)(?:=(\S+))?", found[2].split("  #")[0].split("`")[0])
                yield page, found[1], flags


def test_every_command_that_a_page_shows_exists_with_all_its_flags():
    helps, wrong, num_flags = {}, [], 0
    fields = config_fields(Config)
    for page, name, flags in shown_commands():
        if name in ("COMMAND", "help"):
            continue
        if name not in COMMANDS:
            wrong.append(f"{page}: {name}")
            continue
        if name not in helps:
            helps[name] = command(name, "--help").stdout
        for flag, value in flags:
            num_flags += 1
            if flag.startswith("config."):
                is_known = flag.removeprefix("config.") in fields or flag == "config.SECTION.FIELD"
            else:
                is_known = f"--{flag}" in helps[name] or flag == "help"
            if flag == "config" and re.fullmatch(r"\w+", value or "") and value.islower():
                is_known = (ROOT / "configs" / f"{value}.py").is_file()
            if not is_known:
                wrong.append(f"{page}: {name} --{flag}={value}")
    assert num_flags > 50
    assert wrong == []


def test_every_link_of_a_page_leads_to_a_file_and_a_heading():
    assert [link for page in PAGES for link in broken_links(ROOT / page)] == []


def test_every_file_and_make_target_that_a_page_names_exists():
    makefile = (ROOT / "Makefile").read_text()
    wrong = []
    for page in (page for page in PAGES if page != "CHANGELOG.md"):  # which names what was
        for name in re.findall(
            r"`((?:transformer_jax|train|configs|tests|benchmarks|docs)/[\w/]+\.(?:py|md|json))`", TEXTS[page]
        ):
            if not (ROOT / name).exists():
                wrong.append(f"{page}: {name}")
        for target in re.findall(r"(?:`|^ {4})make ([a-z][\w-]*)", TEXTS[page], re.MULTILINE):
            if not re.search(rf"^{target}:", makefile, re.MULTILINE):
                wrong.append(f"{page}: make {target}")
    assert wrong == []


def test_the_table_of_backends_is_the_one_in_the_code():
    assert compatibility_table() in TEXTS["docs/models.md"]


def test_the_table_of_fine_tuning_is_made_of_its_results_by_these_settings(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    benchmark = importlib.import_module("fine_tuning")
    saved = json.loads((ROOT / "benchmarks" / "results" / "fine_tuning.json").read_text())
    assert benchmark.table(saved["methods"]) in TEXTS["docs/fine_tuning.md"]
    assert saved["learning_rates"] == benchmark.LEARNING_RATES and saved["steps"] == benchmark.STEPS
    assert {run["seed"] for runs in saved["methods"].values() for run in runs} == {0, 1, 2}


def test_every_recipe_is_in_the_table_of_recipes():
    recipes = {path.stem for path in (ROOT / "configs").glob("[!_]*.py")}
    assert recipes == {name for name in re.findall(r"`(\w+)`", TEXTS["docs/training.md"]) if name in recipes}


def test_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 200


def test_every_benchmark_that_a_page_names_can_be_loaded():
    named = {name for text in TEXTS.values() for name in re.findall(r"python (benchmarks/\w+\.py)", text)}
    assert named and all(importlib.util.spec_from_file_location("benchmark", ROOT / name) for name in named)
    assert [name for name in named if not (ROOT / name).is_file()] == []
