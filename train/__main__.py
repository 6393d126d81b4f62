"""Train command: `python -m train --config=RECIPE --workdir=runs/NAME [--config.SECTION.FIELD=VALUE ...]`.

Once installed: `transformer-jax train`, or `transformer-jax-train`.
"""

import sys

from transformer_jax import startup
from transformer_jax.commands.cli import HELP_FLAGS, report_errors
from transformer_jax.schema import config_fields

from .config import Config
from .recipe import read_recipe, recipe_names
from .tasks.registry import TASKS, tasks_reading

EXAMPLE = "python -m transformer_jax train --config=gpt_char --workdir=runs/a --config.train.num_steps=500"


def _help() -> str:
    lines = [
        "Train a Transformer; the same command again resumes.",
        "",
        f"  {EXAMPLE}",
        "",
        "  --config=RECIPE   a recipe of the package by name, or a Python file of yours with get_config()",
        "  --workdir=DIR     the run directory: created, or resumed if it has checkpoints",
        "",
        f"Recipes: {', '.join(recipe_names())}.",
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


def main(argv: list[str]) -> None:
    """Parse the flags, check the config, train."""
    if HELP_FLAGS & set(argv):
        print(_help())
        return
    values, workdir = read_recipe(argv, config_fields(Config), EXAMPLE)
    config = Config.from_dict(values)

    startup.prepare()
    from .loop import run  # here, so that errors above are reported before JAX is loaded

    run(config, workdir)


if __name__ == "__main__":
    sys.exit(report_errors(main, sys.argv))
