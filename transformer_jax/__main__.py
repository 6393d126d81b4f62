"""Command line: `transformer-jax COMMAND [--flags]`, or `python -m transformer_jax COMMAND` in a clone."""

import importlib
import sys
from importlib.metadata import version
from pathlib import Path

from transformer_jax import __version__, import_training
from transformer_jax.commands.cli import HELP_FLAGS, UsageError, report_errors

COMMANDS = {
    "train": "train a model by a recipe, or resume a run",
    "train.scaling": "train a ladder of sizes, and fit scaling laws",
    "evaluate": "score a run on a split of its data",
    "sample": "continue a prompt with a trained model",
    "chat": "talk with a model that has a chat template",
    "translate": "stdin to stdout with a trained Seq2Seq",
    "classify": "a label, or a number, for each line of stdin",
    "tag": "a tag for each word of stdin",
    "score": "log-probability and perplexity of each line of stdin",
    "attention": "draw the attention weights of a model for a text",
    "explore": "a text inside a model, as an interactive page",
    "convert": "Hugging Face folder to run directory, and back",
}
TRAINING = {
    "train": "__main__",
    "train.scaling": "scaling.__main__",
    "evaluate": "evaluate",
}  # their modules in the training package, imported only when asked


def _help() -> str:
    program = "transformer-jax" if Path(sys.argv[0]).stem.startswith("transformer-jax") else "python -m transformer_jax"
    return "\n".join(
        [
            f"usage: {program} COMMAND [--flags]",
            "",
            *(f"  {name:<14}{meaning}" for name, meaning in COMMANDS.items()),
            "",
            f"{program} COMMAND --help lists the flags of a command; --version prints the version.",
        ]
    )


def main(argv: list[str]) -> None:
    """Dispatch to the command that argv[1] names."""
    name = argv[1] if len(argv) > 1 else "help"
    if name == "help" or name in HELP_FLAGS:
        print(_help())
    elif name == "--version":
        print(f"transformer_jax {__version__} (jax {version('jax')}, Python {sys.version.split()[0]})")
    elif name in TRAINING:
        import_training(TRAINING[name]).main([name, *argv[2:]])
    elif name in COMMANDS:
        importlib.import_module(f"transformer_jax.commands.{name}").main([name, *argv[2:]])
    else:
        raise UsageError(f"{name!r}: no such command. Choose one of: {', '.join(COMMANDS)}.")


def run() -> int | None:
    """Console script `transformer-jax`. Returns the exit code."""
    return report_errors(main, sys.argv)


def run_train() -> int | None:
    """Console script `transformer-jax-train`, short for `transformer-jax train`. Returns the exit code."""
    return report_errors(main, [sys.argv[0], "train", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(run())
