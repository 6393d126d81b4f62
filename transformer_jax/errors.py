"""Errors for the user: UserError (fixable input), RunError (a run that cannot continue), `choose` and `check`."""

import os
import re
import sys
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """An error the user can fix: one line with the field, its value, the rule and the fix.

    Commands print it without a traceback and exit with code 2.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class RunError(RuntimeError):
    """A run that cannot continue although its input was valid: a full disk, a loss that stays NaN.

    Commands print it without a traceback and exit with code 1.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: object) -> str:
    """Escape control characters and line breaks: names from data reach a terminal as one line that it only shows."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def warn(*messages: str) -> None:
    """Print warnings on stderr, a line each."""
    for message in messages:
        print(f"warning: {printable(message)}", file=sys.stderr)


def choose(table: Mapping[str, T], name: object, field: str) -> T:
    """Return `table[name]`. Raises UserError that lists the known names."""
    if not isinstance(name, str) or name not in table:
        raise UserError(f"{field}={name!r:.80}: unknown. Choose one of: {', '.join(table)}.")
    return table[name]


def check(is_valid: bool, field: str, value: object, rule: str) -> None:
    """Raise UserError, one line with field, value and rule, unless the value is valid."""
    if not is_valid:
        raise UserError(f"{field}={value!r:.200}: {rule}.")


EXTRAS = {  # optional package: the extra of pyproject.toml that installs it
    **dict.fromkeys(("optax", "ml_collections", "grain", "rich", "sacrebleu", "tensorboardX", "babel"), "train"),
    **dict.fromkeys(("tensorflow_datasets", "importlib_resources"), "data"),
    "matplotlib": "plot",
    "huggingface_hub": "hub",
}


def missing_package(error: ModuleNotFoundError) -> Exception:
    """Return the UserError for an optional package that is not installed, with the pip command; else `error` itself."""
    package = (error.name or "").split(".")[0]
    if package not in EXTRAS:
        return error
    return UserError(
        f"{package}: is not installed, and this needs it. Install it with: "
        f'pip install "transformer_jax[{EXTRAS[package]}]" (or [all]).'
    )


def system_reason(error: BaseException) -> str:
    """Reason of a failed read or write in the system's words ("No space left on device"), with the file if it is known.

    Args:
      error: an OSError, or an exception of tensorstore, which has the system's error number in its text.
    """
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return os.strerror(int(code[1]))
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    first_line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line:.300}"
