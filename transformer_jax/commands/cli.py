"""What every command does around its own work: parse flags, and answer a mistake with one line."""

import sys
from collections.abc import Callable

from absl import flags

from transformer_jax.errors import RunError, UserError, missing_package

HELP_FLAGS = {"--help", "-h", "-help", "--helpfull", "--helpshort"}


class UsageError(UserError):
    """A mistake on the command line."""


def parse_flags(argv: list[str], example: str) -> None:
    """Parse absl flags from `argv`, the program's name first.

    Raises:
      UsageError: an unknown flag, a value of the wrong type, or words that belong to no flag.
    """
    try:
        rest = flags.FLAGS(argv)[1:]
    except flags.Error as error:  # absl names the flag and the value, and suggests the nearest known flag
        raise UsageError(f"{str(error).splitlines()[0].replace(' ?', '?').rstrip('.')}. Example: {example}") from error
    if rest:
        raise UsageError(f"{rest[0]!r}: belongs to no flag; text with spaces needs quotes. Example: {example}")


def show_help(head: str, *modules: str) -> None:
    """Print `head` and the flags that the modules of a command define, with their defaults."""
    print(head)
    modules = [sys.argv[0] if module == "__main__" else module for module in modules]  # as absl names what runs
    known = flags.FLAGS.flags_by_module_dict()
    for flag in [flag for module in modules for flag in known.get(module, [])]:
        default = "" if flag.default is None else f"={flag.default}"
        meaning = flag.help.split(";\n")[0]  # absl adds a line to flags that may be repeated
        print(f"  {f'--{flag.name}{default}':<27}{meaning}")


def report_errors(main: Callable[[list[str]], None], argv: list[str]) -> int | None:
    """Run `main(argv)`. Mistakes become one line on stderr and an exit code: 2 asked wrongly, 1 failed."""
    try:
        try:
            main(argv)
        except ModuleNotFoundError as error:
            raise missing_package(error) from error
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (RunError, OSError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
