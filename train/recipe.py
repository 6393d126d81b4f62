"""Recipes on the command line: --config and --workdir, fields set by flags, and the recipe that is run.

A recipe is a Python file with get_config(). `--config=NAME` takes one of the package, `--config=NAME:ARGUMENT` calls
its get_config(ARGUMENT), as ml_collections has it.
"""

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import Field
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

from transformer_jax.commands.cli import UsageError, parse_flags, required
from transformer_jax.errors import UserError, missing_package
from transformer_jax.schema import unknown_field

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe: a name, or a Python file with get_config().")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run directory: created, or resumed if it has checkpoints.")

ROOT = Path(__file__).resolve().parents[1]
RECIPES = next(ROOT / name for name in ("recipes", "configs") if (ROOT / name / "default.py").is_file())


def recipe_names() -> list[str]:
    """Names of the recipes of the package."""
    return sorted(path.stem for path in RECIPES.glob("[!_]*.py"))


def read_recipe(argv: list[str], fields: Mapping[str, Field], example: str) -> tuple[object, str]:
    """Run the recipe that the command line names, and set the fields that its flags set.

    Args:
      fields: the fields that a recipe may have, by dotted name.
      example: a command line, for messages.
    Returns:
      The configuration, as the recipe has it; and `--workdir`.
    Raises:
      UsageError: an unknown flag or field, a recipe that does not exist or fails, no recipe, no workdir.
    """
    _check_names(argv, fields)
    argv = _with_recipe_path(argv, example)
    _make_configs_importable()
    values = _run_recipe(argv, example)
    return values, required(_WORKDIR, example)


def _check_names(argv: list[str], fields: Mapping[str, Field]) -> None:
    """Refuse fields that do not exist before ml_collections sees them: it answers with a traceback."""
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
    """The file of a recipe, with ":ARGUMENT" if there is one: `recipe` itself, or that of the package with this name.

    Raises:
      UsageError: neither exists.
    """
    name, colon, argument = recipe.partition(":")
    if Path(name).is_file() or Path(recipe).is_file():
        return recipe
    if name in recipe_names():
        return f"{RECIPES / f'{name}.py'}{colon}{argument}"
    raise UsageError(
        f"--config={recipe}: there is no such file, and no recipe of this name. Give a Python file with get_config(), "
        f"or one of: {', '.join(recipe_names())}."
    )


def _with_recipe_path(argv: list[str], example: str) -> list[str]:
    """Command line with the recipe's name replaced by its file, which ml_collections wants.

    Raises:
      UsageError: no recipe, more than one, or one that does not exist.
    """
    given = [i for i, argument in enumerate(argv) if argument.lstrip("-").split("=")[0] == "config"]
    if len(given) > 1:
        raise UsageError("--config: was given twice. Give one recipe; change its fields with --config.SECTION.FIELD.")
    if not given:
        raise UsageError(f"--config: is missing. Example: {example}")
    i = given[0]
    if "=" in argv[i]:
        flag, _, recipe = argv[i].partition("=")
        return [*argv[:i], f"{flag}={_recipe_path(recipe)}", *argv[i + 1 :]]
    if i + 1 == len(argv) or argv[i + 1].startswith("-"):
        raise UsageError(f"--config: needs a recipe. Example: {example}")
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


def _run_recipe(argv: list[str], example: str) -> object:
    """Parse the flags and return the configuration; ml_collections runs the recipe while it parses.

    Raises:
      UsageError: a flag is wrong, or the recipe raises an error or returns no configuration.
    """
    logging.set_verbosity(logging.ERROR)  # ml_collections warns of a recipe that returns None
    try:
        parse_flags(argv, example)
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
    reason = lines[-1].replace(f"{UserError.__module__}.{UserError.__name__}: ", "").rstrip(".")
    raise UsageError(
        f"--config: the recipe gives no configuration: {reason:.200}. See {RECIPES / 'gpt_char.py'}."
    ) from None
