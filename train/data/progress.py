"""Progress on stderr of a pass over a long text: a bar on a terminal, a line every ten seconds in a log file."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType

import rich.console
import rich.progress

LOG_SECONDS = 10.0


class Progress:
    """Progress of one pass, as a context manager. Nothing is shown before the first `advance`.

    Args:
      doing: words for the pass, "reading the text".
      total: number of units; None: not known.
      unit: of the numbers, in the plural.
    """

    def __init__(self, doing: str, total: int | None, unit: str = "characters"):
        self._doing = doing
        self._total = total
        self._unit = unit
        self._done = 0
        self._logged = time.monotonic()
        self._console = rich.console.Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            with contextlib.suppress(OSError):  # the terminal is gone
                self._bar.stop()

    def advance(self, num_units: int) -> None:
        """Count units that are done."""
        self._done += num_units
        with contextlib.suppress(OSError):  # the terminal, or the reader of the log, is gone
            if self._console.is_terminal:
                self._draw()
            elif time.monotonic() - self._logged >= LOG_SECONDS:
                self._logged = time.monotonic()
                share = f"{self._done / self._total:.0%} of " if self._total else ""
                print(f"{self._doing}: {share}{self._total or self._done:,} {self._unit}", file=sys.stderr, flush=True)

    def counting(self, pieces: Iterable[str]) -> Iterator[str]:
        """The same pieces; the characters of each are counted when the next one is asked for."""
        for piece in pieces:
            yield piece
            self.advance(len(piece))

    def _draw(self) -> None:
        if self._bar is None:
            columns = (
                "{task.description}",
                rich.progress.BarColumn(),
                rich.progress.TaskProgressColumn(),
                f"{{task.completed:,}} {self._unit}",
                rich.progress.TimeRemainingColumn(),
            )
            self._bar = rich.progress.Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task(self._doing, total=self._total)
            self._bar.start()
        self._bar.update(self._task, completed=self._done)
