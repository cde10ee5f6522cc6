"""Output that cannot fail, block or delay the work it reports on.

A terminal may close, the reader of a pipe may exit or stop reading, a log's disk may fill up, and a locale may lack a
character. None of this should lose a run. So `print`, log lines, progress bars and Ray's own threads write to streams that
accept everything at once and pass it to a separate thread.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import select
import signal
import sys
import threading
from queue import SimpleQueue
from typing import Any, TextIO

from tqdm import tqdm

from stylevar.processes import STOP_SIGNALS

KEPT = 10_000
"""Writes to buffer for a reader that has stopped reading. Later ones are dropped until it reads again."""
PATIENCE = 5.0
"""Seconds that a program waits for such a reader when it ends."""


class Outlet(io.RawIOBase):
    """Writes to a file descriptor from a separate thread, in order. Drops what cannot be written."""

    def __init__(self, descriptor: int) -> None:
        self.name = self._descriptor = descriptor
        # SimpleQueue.put may be interrupted anywhere, by a signal handler that prints or by KeyboardInterrupt.
        self._waiting: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        threading.Thread(target=self._work, name=f"output-{descriptor}", daemon=True).start()

    def write(self, data: Any, /) -> int:
        """Accept all of `data`; never raises."""
        taken = bytes(data)
        if self._waiting.qsize() < KEPT:
            self._waiting.put(taken)
        return len(taken)

    def drain(self) -> None:
        """Wait until everything is written, but at most `PATIENCE` seconds."""
        written = threading.Event()
        self._waiting.put(written)
        written.wait(PATIENCE)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def _work(self) -> None:
        # A signal delivered to this thread would not wake the main thread, which must handle it.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        while True:
            item = self._waiting.get()
            if isinstance(item, threading.Event):
                item.set()
            else:
                with contextlib.suppress(OSError):  # no reader, no terminal, no disk space: the work matters more
                    self._put(item)

    def _put(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # another program made the shared terminal non-blocking
                select.select([], [self._descriptor], [])


def install() -> None:
    """Send this program's stdout and stderr through an `Outlet`, and give progress bars a lock of this process alone.

    Streams that a test or a notebook has already replaced are left alone.
    """
    outlets: dict[tuple[int, int], Outlet] = {}
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:  # closed from the start
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__"):
            with contextlib.suppress(OSError):
                stream.flush()
            status = os.fstat(stream.fileno())
            # Both streams share one outlet if they go to the same terminal or log; otherwise lines could change order.
            file = status.st_dev, status.st_ino
            outlet = outlets.get(file) or outlets.setdefault(file, Outlet(stream.fileno()))
            setattr(sys, name, text_stream(outlet, stream.encoding))
    if outlets:
        atexit.register(_drain, list(outlets.values()))
        # tqdm's default lock is shared between processes, and a signal at the wrong moment leaves it locked. Only the main
        # thread draws progress bars, and it can acquire this lock again.
        tqdm.set_lock(threading.RLock())
        tqdm.monitor_interval = 0


def text_stream(outlet: Outlet, encoding: str) -> io.TextIOWrapper:
    """A text stream to `outlet`; characters that `encoding` lacks become question marks."""
    return io.TextIOWrapper(outlet, encoding, errors="replace", line_buffering=True)


def _drain(outlets: list[Outlet]) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for outlet in outlets:
        outlet.drain()
