"""What the commands share that answer stdin line by line."""

import sys
from collections.abc import Callable

from absl import flags

from transformer_jax import startup
from transformer_jax.commands.cli import HELP_FLAGS, UsageError, parse_flags, show_help


def define_flags(kind: str) -> tuple[flags.FlagHolder, flags.FlagHolder, flags.FlagHolder]:
    """--run_dir, of a training run of this kind, --checkpoint and --batch_size."""
    return (
        flags.DEFINE_string("run_dir", None, f"A training run of {kind}, or a Hugging Face folder."),
        flags.DEFINE_string("checkpoint", "best", "best (on validation) | latest | a step"),
        flags.DEFINE_integer("batch_size", 32, "Lines that are read at once."),
    )


def begin(argv: list[str], module: str, run_dir: flags.FlagHolder, what: str, example: str) -> list[str] | None:
    """Parse the flags and read stdin: its lines, or None where help was asked for and shown.

    Raises:
      UsageError: wrong flags, no --run_dir, or stdin that is not UTF-8.
    """
    if HELP_FLAGS & set(argv):
        show_help(f"{what}\n\n  {example}\n", __name__, module)
        return None
    parse_flags(argv, example)
    if not run_dir.value:
        raise UsageError(f"--run_dir: is missing. Example: {example}")
    startup.prepare(is_training=False)  # before stdin is read: it may start this process again
    try:
        lines = sys.stdin.buffer.read().decode().splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin: is not UTF-8 at byte {error.start}.") from error
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    return lines


def progress_of(total: int) -> Callable[[int], None]:
    """Tells stderr how many lines are done."""

    def progress(done: int) -> None:
        print(f"\r{done:,}/{total:,}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return progress
