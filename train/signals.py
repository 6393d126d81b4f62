"""Signal handling: save and stop at the first SIGTERM or Ctrl-C, exit at once at the second."""

import os
import signal
import threading


class Stopped(SystemExit):
    """Exit of a run that was asked to stop and has saved its state, with the shell's exit code for the signal.

    128 + 15 = 143 after SIGTERM, 128 + 2 = 130 after Ctrl-C: not 0, which would tell a scheduler that the
    work is done.
    """

    def __init__(self, signum: int):
        super().__init__(128 + signum)


class StopSignals:
    """Context manager: `signum` becomes the first SIGTERM or SIGINT; a second one exits the process at once.

    Outside the main thread, where Python allows no signal handlers, it does nothing.
    """

    signum: int | None = None

    def __enter__(self) -> "StopSignals":
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exc_info):
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _handle(self, signum, frame):
        if self.signum is not None:
            os._exit(128 + signum)
        self.signum = signum
        name = signal.Signals(signum).name
        os.write(2, f"\n{name}: finishing this step and saving. A second signal exits at once.\n".encode())
