"""`python -m train --config=configs/RECIPE.py --workdir=runs/NAME [--config.SECTION.FIELD=VALUE ...]`"""

import glob
import os
import sys

from absl import flags
from ml_collections import config_flags

from transformer_jax import startup
from transformer_jax.commands.cli import HELP_FLAGS, UsageError, parse_flags, report_errors
from transformer_jax.schema import config_fields, unknown_field

from .config import Config

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe: a Python file with get_config().")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run directory: made if need be, resumed if it has checkpoints.")

EXAMPLE = "python -m train --config=configs/gpt_char.py --workdir=runs/a --config.train.num_steps=500"


def _help() -> str:
    lines = [
        "Train a Transformer; the same command again resumes.",
        "",
        f"  {EXAMPLE}",
        "",
        "  --config=FILE     a recipe: configs/*.py",
        "  --workdir=DIR     the run directory: made if need be, resumed if it has checkpoints",
        "",
        "Any field of the recipe can be set as --config.SECTION.FIELD=VALUE. Fields, with their defaults:",
        "",
    ]
    for name, field in config_fields(Config).items():
        setting = f"--config.{name}={field.default}"
        lines.append(f"  {setting:<44}  {field.metadata['meaning']}")
    lines += ["", "Exit codes: 0 trained, 1 failed, 2 asked wrongly, 130 Ctrl-C, 143 SIGTERM (both saved)."]
    return "\n".join(lines)


def _check_names(argv: list[str]) -> None:
    """Refuse fields that do not exist before ml_collections meets them: it answers with a traceback."""
    known = [f"config.{name}" for name in config_fields(Config)]
    sections = {name.rsplit(".", 1)[0] for name in known}
    for argument in argv:
        name = argument.lstrip("-").split("=", 1)[0]
        if argument.startswith("-") and name.startswith("config.") and name not in known:
            if name in sections:
                raise UsageError(f"--{name}: is a section. Set one of its fields: --{name}.FIELD=VALUE.")
            raise UsageError(f"--{unknown_field(name, known)}")


def main(argv: list[str]) -> None:
    """Parse, check, train."""
    if HELP_FLAGS & set(argv):
        print(_help())
        return
    _check_names(argv)
    if sum(argument.lstrip("-").split("=")[0] == "config" for argument in argv) > 1:
        raise UsageError("--config: was given twice. Give one recipe; change its fields with --config.SECTION.FIELD.")
    try:
        parse_flags(argv, EXAMPLE)
    except (AttributeError, KeyError, TypeError) as error:  # raised by the recipe: ml_collections runs it while parsing
        reason = str(error.args[0]).splitlines()[-1]
        raise UsageError(f"--config: the recipe gives no configuration: {reason}. See configs/gpt_char.py.") from error
    recipe = flags.FLAGS["config"].config_filename if _CONFIG.present else None
    for name, value in (("config", recipe), ("workdir", _WORKDIR.value)):
        if not value:
            raise UsageError(f"--{name}: is missing. Example: {EXAMPLE}")
    if not os.path.isfile(recipe):
        recipes = ", ".join(sorted(glob.glob("configs/[!_]*.py")))
        raise UsageError(f"--config={recipe}: there is no such file. Give a recipe: {recipes}.")

    startup.prepare()
    from .loop import run  # here, so that a mistake above is answered before JAX is loaded

    run(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    sys.exit(report_errors(main, sys.argv))
