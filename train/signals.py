"""Signal handling: save and stop at the first SIGTERM, Ctrl-C or SIGHUP, exit at once at the second."""

import contextlib
import os
import select
import signal
import threading
import time
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
TOGETHER_SECONDS = 0.2  # signals within this time are one: `timeout` and shells send it twice, a person takes longer


class Stopped(SystemExit):
    """Exit of a run that was asked to stop, with the shell's exit code for the signal.

    128 + 15 = 143 after SIGTERM, 128 + 2 = 130 after Ctrl-C, 128 + 1 = 129 after SIGHUP: not 0, which would tell a
    scheduler that the work is done.
    """

    def __init__(self, signum: int):
        super().__init__(128 + signum)


class StopSignals:
    """Context manager: `signum` becomes the first signal of SIGNALS; a second one exits the process at once.

    A SIGHUP that is ignored when the run starts (`nohup`) stays ignored. Outside the main thread, where Python allows
    no signal handlers, the context does nothing.
    """

    signum: int | None = None
    nothing_to_save = False  # True: the first signal raises Stopped wherever the main thread is

    def __enter__(self) -> "StopSignals":
        self._thread = None
        if threading.current_thread() is threading.main_thread():
            is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            handled = [s for s in SIGNALS if not (s == signal.SIGHUP and is_ignored)]
            # Python runs a handler between two instructions of the main thread, which may be in the compiler for a
            # minute. The pipe, which Python's C code writes into as the signal arrives, is read by another thread.
            reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._thread = threading.Thread(target=self._read, args=(reader,), daemon=True)
            self._thread.start()
            self._previous_writer = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self._previous = {s: signal.signal(s, self._handle) for s in handled}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._thread:
            for signum, handler in self._previous.items():
                signal.signal(signum, handler)
            signal.set_wakeup_fd(self._previous_writer)
            os.close(self._writer)
            self._thread.join()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.signum = self.signum or signum
        if self.nothing_to_save:
            raise Stopped(signum)

    def _read(self, reader: int) -> None:
        """Read signals from the pipe until it is closed: announce the first, exit at the second."""
        with open(reader, "rb", buffering=0) as pipe:
            first = _next_signal(pipe)
            if first is None:
                return
            self.signum = self.signum or first
            end = time.monotonic() + TOGETHER_SECONDS
            while select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0] and pipe.read(1):
                pass
            doing = "stopping; there is nothing to save" if self.nothing_to_save else "finishing this step and saving"
            message = f"\n{signal.Signals(first).name}: {doing}. A second signal exits at once.\n"
            with contextlib.suppress(OSError):  # the terminal is gone
                os.write(2, message.encode())
            second = _next_signal(pipe)
            if second is not None:
                os._exit(128 + second)


def _next_signal(pipe) -> int | None:
    """Wait for a signal of SIGNALS; None if the pipe was closed."""
    while received := pipe.read(1):
        if received[0] in SIGNALS:
            return received[0]
    return None
