"""The rules of the house, held by reading the sources: who imports whom, how long things are, what is never used."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import ml_collections
import pytest

from train.config import Config
from transformer_jax.errors import UserError

ROOT = Path(__file__).parents[1]
SOURCES = {
    path.relative_to(ROOT).as_posix(): path
    for folder in ("transformer_jax", "train", "configs")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
TESTS = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "tests").glob("*.py"))}
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")

sources = pytest.mark.parametrize("name", SOURCES)


def parse(name):
    return ast.parse((SOURCES | TESTS)[name].read_text(encoding="utf-8"))


def imports(name):
    """Every module that a source imports, wherever in it; `from a import b` gives a and a.b."""
    modules = set()
    for node in ast.walk(parse(name)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports by full names only"
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def is_within(module, package):
    return module == package or module.startswith(package + ".")


def offenders(name, *packages):
    return sorted(m for m in imports(name) if any(is_within(m, package) for package in packages))


# Who leans on whom


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith("transformer_jax/")])
def test_the_library_never_imports_training_or_recipes(name):
    assert not offenders(name, "train", "configs")


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith("transformer_jax/sampling/")])
def test_sampling_never_sees_a_model(name):
    assert not offenders(name, *(f"transformer_jax.{part}" for part in ("models", "blocks", "attention", "layers")))


LAYERS = [  # each may import those before it, and nothing else of the library
    {"config", "int8", "dropout"},
    {"masks", "layers", "linear"},
    {"positions"},
    {"fork", "ring"},
    {"cache"},
    {"sliced", "blockwise"},
    {"attention"},
    {"compatibility"},
    {"blocks"},
    {"models"},
]


@pytest.mark.parametrize("level", range(len(LAYERS)))
def test_the_parts_of_a_model_lean_on_simpler_parts_only(level):
    allowed = {f"transformer_jax.{part}" for layer in LAYERS[:level] for part in layer}
    for part in LAYERS[level]:
        names = [
            name
            for name in SOURCES
            if name == f"transformer_jax/{part}.py" or name.startswith(f"transformer_jax/{part}/")
        ]
        assert names
        own = f"transformer_jax.{part}" if names[0].endswith("__init__.py") else None
        for name in names:
            for module in offenders(name, "transformer_jax"):
                fits = any(is_within(module, known) for known in allowed | {own} - {None})
                assert module == "transformer_jax" or fits, f"{name} imports {module}"
            third_party = {m.split(".")[0] for m in imports(name)} - set(sys.stdlib_module_names)
            assert third_party <= {"jax", "flax", "transformer_jax"}


@sources
def test_only_commands_and_recipes_know_absl_and_ml_collections(name):
    is_edge = name.startswith(("transformer_jax/commands/", "configs/"))
    if not is_edge and name not in ("train/__main__.py", "train/evaluate.py", "train/flops.py"):
        assert not offenders(name, "absl", "ml_collections")


@sources
def test_only_one_module_knows_orbax(name):
    assert not offenders(name, "orbax") or name == "transformer_jax/checkpoint.py"


@sources
def test_what_runs_as_a_command_is_imported_by_no_package(name):
    if name.endswith("__init__.py"):
        assert not offenders(name, "transformer_jax.commands", "transformer_jax.__main__", "train.__main__")


@sources
def test_training_steps_do_not_lean_on_the_loop(name):
    if name in (f"train/{part}.py" for part in ("losses", "state", "step", "parallel", "optimizer", "config")):
        assert not offenders(name, "train.loop", "train.metrics", "train.data", "transformer_jax.checkpoint")


# Size


@pytest.mark.parametrize("name", [*SOURCES, *TESTS])
def test_no_file_and_no_function_is_too_long_to_read(name):
    num_lines = len((SOURCES | TESTS)[name].read_text(encoding="utf-8").splitlines())
    assert num_lines <= (300 if name in SOURCES else 350)
    for node in ast.walk(parse(name)):
        if isinstance(node, ast.FunctionDef):
            docstring_lines = (ast.get_docstring(node, clean=False) or "").count("\n")
            assert node.end_lineno - node.lineno - docstring_lines < 80, f"{node.name} in line {node.lineno}"


# What is never used


@sources
def test_nothing_reads_data_that_could_run_code(name):
    assert not offenders(name, "pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")
    for node in ast.walk(parse(name)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "pickle.load", "torch.load"), called
            assert "allow_pickle" not in {keyword.arg for keyword in node.keywords}


@pytest.mark.parametrize("module", ["transformer_jax", "train.loop"])
def test_importing_it_loads_no_other_framework(module):
    script = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    loaded = set(json.loads(process.stdout))
    assert module in loaded
    assert not loaded & {"tensorflow", "torch", "transformers", "keras", "tensorflow_datasets"}
    if module == "transformer_jax":
        assert not loaded & {"train", "configs", "ml_collections", "grain", "matplotlib", "tensorboardX"}


# What is written down


@sources
def test_every_module_says_what_it_is(name):
    assert ast.get_docstring(parse(name))


@pytest.mark.parametrize("name", [name for name in SOURCES if not name.startswith("configs/")])
def test_everything_public_says_what_it_does(name):
    for node in parse(name).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} in line {node.lineno}"


# Recipes


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_locked_and_valid(recipe):
    config = importlib.import_module(f"configs.{recipe}").get_config()
    assert isinstance(config, ml_collections.ConfigDict) and config.is_locked
    with pytest.raises(AttributeError):
        config.train.no_such_field = 3
    assert isinstance(Config.from_dict(config), Config)


def test_a_recipe_cannot_be_given_a_field_that_does_not_exist():
    config = importlib.import_module("configs.default").get_config().to_dict()
    assert Config.from_dict(config) == Config()
    with pytest.raises(UserError, match="model.num_layer: no such field. Did you mean model.num_layers?"):
        Config.from_dict(config | {"model": {"num_layer": 3}})
