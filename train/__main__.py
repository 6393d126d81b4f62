"""Train command: `python -m train --config=RECIPE --workdir=runs/NAME [--config.SECTION.FIELD=VALUE ...]`.

Once installed: `transformer-jax train`, or `transformer-jax-train`.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

from transformer_jax import startup
from transformer_jax.commands.cli import HELP_FLAGS, UsageError, parse_flags, report_errors, required
from transformer_jax.errors import missing_package
from transformer_jax.schema import config_fields, unknown_field

from .config import Config
from .tasks.registry import TASKS, tasks_reading

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe: a name, or a Python file with get_config().")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run directory: created, or resumed if it has checkpoints.")

EXAMPLE = "python -m transformer_jax train --config=gpt_char --workdir=runs/a --config.train.num_steps=500"
ROOT = Path(__file__).resolve().parents[1]
RECIPES = next(ROOT / name for name in ("recipes", "configs") if (ROOT / name / "default.py").is_file())


def _recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("[!_]*.py"))


def _help() -> str:
    lines = [
        "Train a Transformer; the same command again resumes.",
        "",
        f"  {EXAMPLE}",
        "",
        "  --config=RECIPE   a recipe of the package by name, or a Python file of yours with get_config()",
        "  --workdir=DIR     the run directory: created, or resumed if it has checkpoints",
        "",
        f"Recipes: {', '.join(_recipe_names())}.",
        "",
        "Any field of the recipe can be set as --config.SECTION.FIELD=VALUE. Fields, with their defaults:",
        "",
    ]
    for name, field in config_fields(Config).items():
        setting = f"--config.{name}={field.default}"
        tasks = tasks_reading(name)
        of_tasks = f"task={', '.join(tasks)}: " if len(tasks) < len(TASKS) else ""
        lines.append(f"  {setting:<44}  {of_tasks}{field.metadata['meaning']}")
    lines += [
        "",
        "Exit codes: 0 trained, 1 failed, 2 usage error; stopped and saved: 129 SIGHUP, 130 Ctrl-C, 143 SIGTERM.",
    ]
    return "\n".join(lines)


def _check_names(argv: list[str]) -> None:
    """Refuse fields that do not exist before ml_collections sees them: it answers with a traceback."""
    fields = config_fields(Config)
    known = [f"config.{name}" for name in fields]
    sections = {name.rsplit(".", 1)[0] for name in known}
    for argument in argv:
        flag = argument.lstrip("-").split("=", 1)[0]
        name = flag.removeprefix("no")  # --noconfig.train.tensorboard
        if not argument.startswith("-") or not name.startswith("config."):
            continue
        if name in sections:
            raise UsageError(f"--{flag}: is a section. Set one of its fields: --{name}.FIELD=VALUE.")
        if name not in known:
            raise UsageError(f"--{unknown_field(name, known)}")
        if flag != name and (fields[name.removeprefix("config.")].type is not bool or "=" in argument):
            raise UsageError(f"--{flag}: stands alone, for a field that is true or false. Give --{name}=VALUE.")


def _recipe_path(recipe: str) -> str:
    """The file of a recipe: `recipe` itself, or the recipe of the package with this name.

    Raises:
      UsageError: neither exists.
    """
    by_name = RECIPES / f"{recipe}.py"
    if Path(recipe).is_file():
        return recipe
    if recipe in _recipe_names():
        return str(by_name)
    raise UsageError(
        f"--config={recipe}: there is no such file, and no recipe of this name. Give a Python file with get_config(), "
        f"or one of: {', '.join(_recipe_names())}."
    )


def _with_recipe_path(argv: list[str]) -> list[str]:
    """Command line with the recipe's name replaced by its file, which ml_collections wants.

    Raises:
      UsageError: no recipe, more than one, or one that does not exist.
    """
    given = [i for i, argument in enumerate(argv) if argument.lstrip("-").split("=")[0] == "config"]
    if len(given) > 1:
        raise UsageError("--config: was given twice. Give one recipe; change its fields with --config.SECTION.FIELD.")
    if not given:
        raise UsageError(f"--config: is missing. Example: {EXAMPLE}")
    i = given[0]
    if "=" in argv[i]:
        flag, _, recipe = argv[i].partition("=")
        return [*argv[:i], f"{flag}={_recipe_path(recipe)}", *argv[i + 1 :]]
    if i + 1 == len(argv) or argv[i + 1].startswith("-"):
        raise UsageError(f"--config: needs a recipe. Example: {EXAMPLE}")
    return [*argv[: i + 1], _recipe_path(argv[i + 1]), *argv[i + 2 :]]


def _make_configs_importable() -> None:
    """Let a recipe say `from configs.default import get_config` wherever the package and the recipe are."""
    try:
        if importlib.util.find_spec("configs.default"):
            return
    except ModuleNotFoundError:
        pass
    own = getattr(
        sys.modules.pop("configs", None), "__path__", []
    )  # a folder `configs` of the user's, without default.py
    spec = importlib.util.spec_from_file_location(
        "configs", RECIPES / "__init__.py", submodule_search_locations=[str(RECIPES), *own]
    )
    assert spec and spec.loader
    sys.modules["configs"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["configs"])


def _run_recipe(argv: list[str]) -> object:
    """Parse the flags and return the configuration; ml_collections runs the recipe while it parses.

    Raises:
      UsageError: a flag is wrong, or the recipe raises an error or returns no configuration.
    """
    logging.set_verbosity(logging.ERROR)  # ml_collections warns of a recipe that returns None
    try:
        parse_flags(argv, EXAMPLE)
        values = _CONFIG.value
        if hasattr(values, "items"):  # raises an OSError of the recipe, which ml_collections kept
            return values
        reason = f"get_config() returns {values!r:.80}"
    except UsageError as error:
        reason = str(error.__cause__)
        if "Error whilst parsing config file" not in reason:
            raise
    except ModuleNotFoundError as error:
        reason = str(missing_package(error))
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
    lines = reason.replace("\\n", "\n").strip().splitlines()  # the last of a traceback, or of "Did you mean ...?"
    raise UsageError(
        f"--config: the recipe gives no configuration: {lines[-1]:.200}. See {RECIPES / 'gpt_char.py'}."
    ) from None


def main(argv: list[str]) -> None:
    """Parse the flags, check the config, train."""
    if HELP_FLAGS & set(argv):
        print(_help())
        return
    _check_names(argv)
    argv = _with_recipe_path(argv)
    _make_configs_importable()
    values = _run_recipe(argv)
    workdir = required(_WORKDIR, EXAMPLE)

    config = Config.from_dict(values)

    startup.prepare()
    from .loop import run  # here, so that errors above are reported before JAX is loaded

    run(config, workdir)


if __name__ == "__main__":
    sys.exit(report_errors(main, sys.argv))
