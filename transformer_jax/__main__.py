"""`python -m transformer_jax COMMAND [--flags]`; without a command, the list of them."""

import importlib
import sys

from transformer_jax.commands.cli import UsageError, report_errors

COMMANDS = {
    "sample": "continue a prompt with a trained model",
    "translate": "stdin to stdout with a trained Seq2Seq",
    "classify": "a label, or a number, for each line of stdin",
    "tag": "a tag for each word of stdin",
    "score": "how likely each line of stdin is",
    "attention": "draw what a model looks at in a text",
    "convert": "Hugging Face folder to run directory, and back",
}

HELP = "\n".join(
    [
        "usage: python -m transformer_jax COMMAND [--flags]",
        "",
        *(f"  {name:<11}{meaning}" for name, meaning in COMMANDS.items()),
        "",
        "python -m transformer_jax COMMAND --help lists a command's flags.",
    ]
)


def main(argv: list[str]) -> None:
    """Find the command and hand it the rest."""
    name = argv[1] if len(argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print(HELP)
        return
    if name not in COMMANDS:
        raise UsageError(f"{name!r}: no such command. Choose one of: {', '.join(COMMANDS)}.")
    importlib.import_module(f"transformer_jax.commands.{name}").main([name, *argv[2:]])


if __name__ == "__main__":
    sys.exit(report_errors(main, sys.argv))
