"""Scaling command: `python -m train.scaling --config=configs/scaling_char.py --workdir=runs/scaling`.

Trains a ladder of sizes and budgets, fits the scaling laws, predicts a larger run, and makes it. Run by run it can be
interrupted; the same command again continues.
"""

import sys

from transformer_jax import startup
from transformer_jax.commands.cli import HELP_FLAGS, report_errors
from transformer_jax.schema import config_fields

from ..recipe import read_recipe
from .config import LadderConfig

EXAMPLE = "python -m transformer_jax train.scaling --config=scaling_char --workdir=runs/scaling"


def _help() -> str:
    lines = [
        "Train a ladder of sizes and budgets, fit scaling laws, predict a larger run and make it.",
        "",
        f"  {EXAMPLE}",
        "",
        "  --config=RECIPE   a recipe with a section `scaling`, such as scaling_char",
        "  --workdir=DIR     runs.jsonl, scaling.json and scaling.png; the same command again continues",
        "",
        "Fields of the ladder, with their defaults; all others are those of `train`, for every run:",
        "",
    ]
    for name, field in config_fields(LadderConfig).items():
        if name.startswith("scaling."):
            lines.append(f"  {f'--config.{name}={field.default}':<58}  {field.metadata['meaning']}")
    return "\n".join(
        [*lines, "", "Exit codes: 0 done, 1 failed, 2 usage error, 130 Ctrl-C: runs that are done are kept."]
    )


def main(argv: list[str]) -> None:
    """Parse the flags, train the ladder, fit, predict, report."""
    if HELP_FLAGS & set(argv):
        print(_help())
        return
    values, workdir = read_recipe(argv, config_fields(LadderConfig), EXAMPLE)
    config = LadderConfig.from_dict(values)
    startup.prepare()
    from .loop import run  # here, so that errors above are reported before JAX is loaded

    run(config, workdir)


if __name__ == "__main__":
    sys.exit(report_errors(main, sys.argv))
