"""Rules of the house, read from the sources: import directions, sizes, what is never used. Each lists all offenders."""

import ast
import functools
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import ml_collections
import pytest

from train.config import Config
from train.scaling.config import LadderConfig
from transformer_jax.errors import UserError

ROOT = Path(__file__).parents[1]
FOLDERS = ("transformer_jax", "train", "configs")
SOURCES = {p.relative_to(ROOT).as_posix(): p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py"))}
BENCHMARKS = {p.relative_to(ROOT).as_posix(): p for p in sorted((ROOT / "benchmarks").rglob("*.py"))}
TESTS = {p.relative_to(ROOT).as_posix(): p for p in sorted((ROOT / "tests").rglob("*.py"))}
COURSE = {p.relative_to(ROOT).as_posix(): p for p in sorted((ROOT / "lessons" / "course").glob("*.py"))}
ALL = SOURCES | BENCHMARKS | TESTS | COURSE
LIBRARY = [name for name in SOURCES if name.startswith("transformer_jax/")]
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")

TOP = {"__init__", "__main__", "config", "errors", "files", "lines", "pretrained", "run", "schema", "startup"}

# Who may import whom, inside transformer_jax: a room may import itself and what stands beside it here.
ROOMS = {
    "errors": set(),
    "schema": {"errors"},
    "files": {"errors"},
    "startup": {"errors"},
    "lines": {"errors"},
    "checkpoints": {"errors", "files", "schema", "models", "tokenizers"},
    "config": {"errors", "schema"},
    "nn": {"errors", "config"},
    "models": {"errors", "schema", "config", "nn"},
    "tokenizers": {"errors", "files", "schema"},
    "sampling": {"errors", "config", "nn.kv_cache"},
    "testing": {"errors", "config", "nn", "models"},
    "huggingface": {"errors", "schema", "config", "nn", "models", "sampling"},
    "run": {"errors", "config", "checkpoints", "nn", "models", "tokenizers", "sampling", "huggingface"},
    "pretrained": {"errors", "checkpoints", "models", "tokenizers", "huggingface", "run"},
    "inference": {
        "errors", "schema", "config", "checkpoints", "nn", "models", "tokenizers", "sampling", "huggingface", "run",
        "pretrained",
    },
    "explorer": {"errors", "files", "models", "run", "inference"},
    "commands": {
        "errors", "files", "schema", "startup", "lines", "run", "inference", "explorer", "tokenizers", "huggingface",
        "__init__", "pretrained",
    },
    "__init__": {"errors", "config", "pretrained", "run", "inference", "explorer"},  # the last four at the first use
    "__main__": {"__init__", "commands"},
}  # fmt: skip


@functools.cache
def parse(name):
    return ast.parse(ALL[name].read_text(encoding="utf-8"))


@functools.cache
def imports(name):
    """Every module that a source imports, wherever in it; `from a import b` gives a and a.b."""
    modules = set()
    package = name.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(parse(name)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            modules |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return modules


def is_within(module, package):
    return module == package or module.startswith(package + ".")


def imported_from(name, *packages):
    return sorted(m for m in imports(name) if any(is_within(m, package) for package in packages))


def module_names():
    """Every module of the library by its dotted name without `transformer_jax.`; a package by its own name."""
    names = {}
    for name in LIBRARY:
        parts = Path(name).with_suffix("").parts[1:]
        names[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = name
    return names


# Import directions


def test_no_room_of_the_library_imports_a_room_above_it():
    offenders = []
    for dotted, name in module_names().items():
        room = dotted.split(".")[0]
        allowed = ROOMS[room] | {room}
        for module in imported_from(name, "transformer_jax"):
            target = module.removeprefix("transformer_jax").removeprefix(".") or "__init__"
            known = [other for other in ROOMS if is_within(target, other)]
            if not known:  # a name defined in transformer_jax/__init__, such as tj.import_training
                known = ["__init__"] if module != "transformer_jax" else []
            is_allowed = (
                any(is_within(target, other) for other in allowed) or "__init__" in allowed and known == ["__init__"]
            )
            if module != "transformer_jax" and not is_allowed and target != room:
                offenders.append(f"{name} imports {module}")
    assert offenders == []


def test_no_modules_import_each_other_in_a_circle():
    modules = {f"transformer_jax.{dotted}": name for dotted, name in module_names().items()}
    modules |= {
        p.removesuffix(".py").removesuffix("/__init__").replace("/", "."): p for p in SOURCES if p.startswith("train/")
    }
    graph = {module: [other for other in imports(name) if other in modules and other != module]
             for module, name in modules.items()}  # fmt: skip
    packages = {module for module, name in modules.items() if name.endswith("__init__.py")}
    circles, done = [], set()

    def visit(module, path):
        if module in path:
            circles.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for other in graph[module]:
                if not (other in packages and is_within(module, other)):  # every module is in its package
                    visit(other, [*path, module])
            done.add(module)

    for module in graph:
        visit(module, [])
    assert circles == []


def test_the_library_never_imports_training_or_recipes():
    assert [m for name in LIBRARY for m in imported_from(name, "train", "configs")] == []


def test_nothing_imports_the_course():
    assert [m for name in SOURCES | BENCHMARKS for m in imported_from(name, "lessons", "course")] == []


def test_the_mathematics_needs_nothing_but_jax_and_flax():
    offenders = {}
    for name in LIBRARY:
        if name.startswith(("transformer_jax/nn/", "transformer_jax/models/")):
            third_party = {module.split(".")[0] for module in imports(name)} - set(sys.stdlib_module_names)
            offenders[name] = third_party - {"jax", "flax", "transformer_jax"}
    assert {name: found for name, found in offenders.items() if found} == {}


def test_only_commands_and_recipes_know_absl_and_ml_collections():
    edge = ("transformer_jax/commands/", "configs/", "train/recipe.py", "train/evaluate.py")
    assert [
        name for name in SOURCES if not name.startswith(edge) and imported_from(name, "absl", "ml_collections")
    ] == []


def test_only_one_module_knows_orbax():
    assert [name for name in SOURCES if imported_from(name, "orbax")] == ["transformer_jax/checkpoints/store.py"]


def test_inference_needs_no_package_of_training():
    packages = ("optax", "grain", "tensorboardX", "rich", "sacrebleu", "tensorflow_datasets", "babel")
    assert [m for name in LIBRARY for m in imported_from(name, *packages)] == []


def test_training_steps_do_not_import_the_loop_or_data():
    parts = [f"train/{part}.py" for part in ("losses", "state", "step", "parallel", "optimizer", "config")]
    above = ("train.loop", "train.metrics", "train.data", "transformer_jax.checkpoints.store")
    assert [m for name in parts for m in imported_from(name, *above)] == []


def test_training_imports_itself_by_relative_names():
    # Installed, the package `train` is transformer_jax.training.
    absolute = [
        f"{name}:{node.lineno}"
        for name in SOURCES
        if name.startswith("train/")
        for node in ast.walk(parse(name))
        if isinstance(node, ast.ImportFrom) and not node.level and is_within(node.module, "train")
        or isinstance(node, ast.Import) and any(is_within(alias.name, "train") for alias in node.names)
    ]  # fmt: skip
    assert absolute == []


def test_the_hall_has_at_most_ten_files_and_no_module_called_train():
    assert {path.stem for path in (ROOT / "transformer_jax").glob("*.py")} == TOP
    assert [name for name in LIBRARY if Path(name).stem == "train" or "/train/" in name] == []


def test_models_and_decoding_never_ask_which_kind_of_cache_they_hold():
    kinds = r"\b(FullCache|RollingCache|BeamCache|LinearCache)\b"
    sources = {name: path.read_text(encoding="utf-8") for name, path in SOURCES.items()}
    assert [n for n, text in sources.items() if "nn/kv_cache" not in n and re.search(kinds, text)] == []
    assert sum(len(re.findall(r"isinstance\([^)]*\bSeq2Seq", text)) for n, text in sources.items()
               if not n.startswith(("transformer_jax/models/", "transformer_jax/huggingface/"))) <= 3  # fmt: skip
    assert sum(len(re.findall(r"(?m)^.*\bAny\b.*$", sources[name])) for name in LIBRARY) <= 60


# Size and style


def test_no_file_and_no_function_is_too_long_to_read():
    offenders = []
    for name, path in ALL.items():
        num_lines = len(path.read_text(encoding="utf-8").splitlines())
        if num_lines > (350 if name in TESTS else 320):
            offenders.append(f"{name}: {num_lines} lines")
        for node in ast.walk(parse(name)):
            if isinstance(node, ast.FunctionDef):
                docstring_lines = (ast.get_docstring(node, clean=False) or "").count("\n")
                if node.end_lineno - node.lineno - docstring_lines >= 80:
                    offenders.append(f"{name}:{node.lineno} {node.name}")
    assert offenders == []


def test_the_formatter_is_skipped_for_tables_and_drawings_only():
    skipped = sum(len(re.findall("# fmt: ski[p]", path.read_text())) for path in ALL.values())
    assert skipped <= 30


def test_every_module_class_and_function_says_what_it_is():
    missing, relative = [], []
    for name in SOURCES | COURSE:
        nodes = [parse(name)]
        if not name.startswith("configs/"):
            nodes += [n for n in parse(name).body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name[0] != "_"]
            nodes = [n for n in nodes if "overload" not in map(ast.unparse, getattr(n, "decorator_list", []))]
        missing += [f"{name}:{getattr(node, 'lineno', 1)}" for node in nodes if not ast.get_docstring(node)]
        for node in [parse(name), *(n for n in ast.walk(parse(name)) if isinstance(n, ast.ClassDef | ast.FunctionDef))]:
            first = (ast.get_docstring(node) or "x").split()[0]
            if first in ("What", "Whom", "Who", "How", "Where", "Whether", "Which", "Whose"):
                relative.append(f"{name}:{getattr(node, 'lineno', 1)} {first}")
    assert missing == []
    assert relative == []


def test_every_test_asserts_something():
    silent = []
    for name in TESTS:
        for node in ast.walk(parse(name)):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                if not re.search(r"assert|raises|check_|check\(|close\(|refuse|verify", ast.unparse(node)):
                    silent.append(f"{name}:{node.lineno} {node.name}")
    assert silent == []


def test_no_test_module_imports_another():
    assert [f"{name} imports {m}" for name in TESTS for m in imports(name) if m.startswith("test_")] == []


# What is never used


def test_nothing_reads_data_that_could_run_code():
    offenders = []
    for name in SOURCES:
        offenders += imported_from(name, "pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")
        for node in ast.walk(parse(name)):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                keywords = {keyword.arg for keyword in node.keywords}
                if called in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "pickle.load", "torch.load"):
                    offenders.append(f"{name}:{node.lineno} {called}")
                elif "allow_pickle" in keywords:
                    offenders.append(f"{name}:{node.lineno} allow_pickle")
    assert offenders == []


@pytest.mark.parametrize("module", ["transformer_jax", "train.loop"])
def test_importing_it_loads_no_other_framework(module):
    script = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    loaded = set(json.loads(process.stdout))
    assert module in loaded
    assert not loaded & {"tensorflow", "torch", "transformers", "keras", "tensorflow_datasets"}
    if module == "transformer_jax":
        assert not loaded & {"jax", "train", "configs", "ml_collections", "grain", "matplotlib", "tensorboardX"}


def test_the_settings_of_generation_are_checked_without_loading_jax():
    script = "import sys, transformer_jax as tj; tj.GenerationConfig(top_k=5); print('jax' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert process.stdout.strip() == "False", process.stderr


# Recipes and packaging


def test_every_recipe_is_locked_and_valid():
    for recipe in RECIPES:
        config = importlib.import_module(f"configs.{recipe}").get_config()
        assert isinstance(config, ml_collections.ConfigDict) and config.is_locked, recipe
        with pytest.raises(AttributeError):
            config.train.no_such_field = 3
        settings = LadderConfig if "scaling" in config else Config
        assert isinstance(settings.from_dict(config), settings), recipe


def test_a_recipe_cannot_be_given_a_field_that_does_not_exist():
    config = importlib.import_module("configs.default").get_config().to_dict()
    assert Config.from_dict(config) == Config()
    with pytest.raises(UserError, match="model.num_layer: no such field. Did you mean model.num_layers?"):
        Config.from_dict(config | {"model": {"num_layer": 3}})


def test_pyproject_and_requirements_agree_and_every_package_is_in_the_wheel():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    asked = {
        *project["project"]["dependencies"],
        *(r for name, extra in extras.items() if name != "all" for r in extra),
    }
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    assert asked == {line for line in lines if line}
    assert extras["all"] == [f"transformer_jax[{','.join(name for name in extras if name != 'all')}]"]
    wheel = {"train": "transformer_jax.training", "configs": "transformer_jax.recipes"}
    packages = {Path(name).parent.parts for name in SOURCES}
    packages = {".".join([wheel.get(parts[0], parts[0]), *parts[1:]]) for parts in packages}
    assert set(project["tool"]["setuptools"]["packages"]) == packages
    patterns = project["tool"]["setuptools"]["package-data"]["transformer_jax.explorer"]
    page = [path for path in (ROOT / "transformer_jax/explorer").iterdir() if path.suffix not in (".py", "")]
    assert len(page) >= 5 and [path.name for path in page if not any(map(path.match, patterns))] == []
    assert [path.name for path in page if len(path.read_text(encoding="utf-8").splitlines()) > 300] == []
