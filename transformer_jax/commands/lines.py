"""Commands that answer stdin line by line: shared flags, reading lines, printing answers, progress on stderr."""

import sys
from collections.abc import Callable, Iterable

from absl import flags

from transformer_jax import startup
from transformer_jax.commands.cli import ADAPTER_MEANING, HELP_FLAGS, parse_flags, required, show_help, use_utf8
from transformer_jax.lines import one_line, read_stdin, split_lines


def define_flags(task: str) -> tuple[flags.FlagHolder, flags.FlagHolder, flags.FlagHolder, flags.FlagHolder]:
    """Define --run_dir, a training run of this task, --checkpoint, --adapter and --batch_size."""
    return (
        flags.DEFINE_string("run_dir", None, f"training run ({task}) or Hugging Face folder"),
        flags.DEFINE_string("checkpoint", "best", "of a training run: best (on validation) | latest | a step"),
        flags.DEFINE_string("adapter", "", ADAPTER_MEANING),
        flags.DEFINE_integer("batch_size", 32, "lines that are read together"),
    )


def read_lines(argv: list[str], module: str, run_dir: flags.FlagHolder, summary: str, example: str) -> list[str] | None:
    """Parse the flags and read the lines of stdin; for --help, show the help and return None.

    Raises:
      UserError: wrong flags, no --run_dir, or stdin that is not UTF-8.
    """
    if HELP_FLAGS & set(argv):
        show_help(f"{summary}\n\n  {example}\n", __name__, module)
        return None
    parse_flags(argv, example)
    required(run_dir, example)
    startup.prepare(is_training=False)  # before stdin is read, since it may start this process again
    lines = split_lines(read_stdin())
    use_utf8(sys.stdout)
    return lines


def print_lines(answers: Iterable[str]) -> None:
    """Print each answer as one line, whatever characters a model or the labels of a run have."""
    for answer in answers:
        print(one_line(answer))


def progress_printer(total: int) -> Callable[[int], None]:
    """A function that prints the number of lines done, of `total`, to stderr."""

    def print_progress(done: int) -> None:
        print(f"\r{done:,}/{total:,}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return print_progress
