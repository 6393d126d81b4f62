"""TensorBoard event file: scalars by step, written by this thread.

tensorboardX's SummaryWriter writes in a thread of its own. On a full disk that thread ends, and the run waits for it
without end; here the error reaches the run.
"""

import time
from pathlib import Path

from transformer_jax.files import writing

FLUSH_SECONDS = 60


class EventFile:
    """New event file in a folder.

    Args:
      folder: made if it does not exist.
      first_step: TensorBoard leaves out what earlier files have from this step on.
    """

    def __init__(self, folder: Path, first_step: int):
        from tensorboardX import event_file_writer, summary  # here, so that a run without these files does not need it
        from tensorboardX.proto import event_pb2

        self._folder = folder
        self._proto = event_pb2
        self._scalar = summary.scalar
        self._flushed = time.monotonic()
        self._is_closed = False
        with writing(folder):
            folder.mkdir(exist_ok=True)
            self._file = event_file_writer.EventsWriter(str(folder / "events"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(session_log=start, step=first_step, wall_time=time.time()))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Add a number. Raises RunError if the file cannot be written."""
        self._write(self._proto.Event(summary=self._scalar(name, value), step=step, wall_time=time.time()))
        if time.monotonic() > self._flushed + FLUSH_SECONDS:
            self.flush()

    def _write(self, event: object) -> None:
        with writing(self._folder):
            self._file.write_event(event)

    def flush(self) -> None:
        """Flush the file to the disk. Raises RunError if it cannot be written."""
        with writing(self._folder):
            self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush the file and close it, once. Raises RunError if it cannot be written."""
        if not self._is_closed:
            self._is_closed = True
            with writing(self._folder):
                self._file.close()
