"""Command line helpers: parse absl flags, show help, report errors in one line, set UTF-8."""

import codecs
import io
import os
import sys
from collections.abc import Callable
from typing import TextIO

from absl import flags

from transformer_jax.errors import RunError, UserError, missing_package, printable

ADAPTER_MEANING = "folder of an adapter of PEFT (LoRA, DoRA, IA3) for the model; empty: none"
HELP_FLAGS = {"--help", "-h", "-help", "--helpfull", "--helpshort"}


class UsageError(UserError):
    """A wrong flag, value or file on the command line."""


def parse_flags(argv: list[str], example: str) -> None:
    """Parse absl flags from `argv`, whose first item is the program's name.

    Raises:
      UsageError: an unknown flag, a value of the wrong type, or a word that belongs to no flag.
    """
    try:
        rest = flags.FLAGS(argv)[1:]
    except flags.Error as error:  # absl names the flag and the value, and suggests the nearest known flag
        message = str(error).splitlines()[0].replace(" ?", "?").rstrip(".")
        raise UsageError(f"{message}{'' if message.endswith('?') else '.'} Example: {example}") from error
    if rest:
        raise UsageError(f"{rest[0]!r}: belongs to no flag; text with spaces needs quotes. Example: {example}")


def required(flag: flags.FlagHolder, example: str) -> str:
    """Value of a flag. Raises UsageError if it was not given."""
    if not flag.value:
        raise UsageError(f"--{flag.name}: is missing. Example: {example}")
    return flag.value


def show_help(head: str, *modules: str) -> None:
    """Print `head` and the flags that the modules of a command define, with their defaults."""
    print(head)
    known = flags.FLAGS.flags_by_module_dict()
    names = [sys.argv[0] if module == "__main__" else module for module in modules]  # absl's name of the main module
    for flag in [flag for name in names for flag in known.get(name, [])]:
        default = "" if flag.default is None else f"={flag.default}"
        meaning = flag.help.split(";\n")[0]  # absl adds a line to flags that may be repeated
        print(f"  {f'--{flag.name}{default}':<28}{meaning}")


def report_errors(main: Callable[[list[str]], None], argv: list[str]) -> int | None:
    """Run `main(argv)`. An error becomes one line on stderr and an exit code: 2 for the user's, 1 for a failure.

    A pipe that its reader closed ends the command quietly, with 141 as a shell has for SIGPIPE.
    """
    try:
        try:
            main(argv)
            sys.stdout.flush()
        except ModuleNotFoundError as error:
            raise missing_package(error) from error
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has all it wants, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        return 141
    except (RunError, OSError) as error:
        print(f"failed: {printable(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def use_utf8(stream: TextIO) -> None:
    """Set a standard stream to UTF-8, whatever the locale; bytes that are no UTF-8 pass unchanged."""
    codecs.register_error("surrogatebytes", _surrogate_bytes)
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8", errors="surrogatebytes")


def _surrogate_bytes(error: UnicodeError) -> tuple[bytes, int]:
    """Encode surrogates: a byte of the command line that is no UTF-8 as itself, a generated surrogate as its three."""
    assert isinstance(error, UnicodeEncodeError), "for output only"
    found = error.object[error.start : error.end]
    return b"".join(
        c.encode("utf-8", "surrogateescape" if "\udc80" <= c <= "\udcff" else "surrogatepass") for c in found
    ), error.end
