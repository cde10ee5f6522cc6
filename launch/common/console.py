"""Output that cannot fail, block or delay the work it reports on.

A terminal may close, the reader of a pipe may go away or stop reading, a log's disk may fill, and a locale may lack a
character. None of this is a reason to lose a run, so `print`, log lines, progress bars and Ray's own threads write to
streams that take everything at once and hand it to a thread of their own.
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
"""Writes that wait for a reader who has stopped reading; later ones are dropped until he reads again."""
PATIENCE = 5.0
"""Seconds that the end of the program waits for such a reader."""


class Outlet(io.RawIOBase):
    """Writes to a file descriptor from a thread of its own, in order; what cannot be written is dropped."""

    def __init__(self, descriptor: int) -> None:
        self.name = self._descriptor = descriptor
        # Its `put` may be interrupted anywhere, by a signal handler that prints or by KeyboardInterrupt.
        self._waiting: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        threading.Thread(target=self._work, name=f"output-{descriptor}", daemon=True).start()

    def write(self, data: Any, /) -> int:
        """Take `data`; always all of it, and never an error."""
        taken = bytes(data)
        if self._waiting.qsize() < KEPT:
            self._waiting.put(taken)
        return len(taken)

    def drain(self) -> None:
        """Wait until everything is written, for `PATIENCE` seconds at most."""
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
        # A signal that this thread took would not wake the main thread, which has to answer it.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        while True:
            item = self._waiting.get()
            if isinstance(item, threading.Event):
                item.set()
            else:
                with contextlib.suppress(OSError):  # no reader, no terminal, no room: the work matters more
                    self._put(item)

    def _put(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # another program made the shared terminal non-blocking
                select.select([], [self._descriptor], [])


def install() -> None:
    """Let standard output and error of this program go through an `Outlet`, and progress bars hold no lock for others.

    Streams that something else has replaced, such as a test or a notebook, stay as they are.
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
            # One outlet for a terminal or a log that takes both, or their lines could change places.
            file = status.st_dev, status.st_ino
            outlet = outlets.get(file) or outlets.setdefault(file, Outlet(stream.fileno()))
            setattr(sys, name, text_stream(outlet, stream.encoding))
    if outlets:
        atexit.register(_drain, list(outlets.values()))
        # The usual lock is shared between processes, and a signal at the wrong moment leaves it taken. The bars of all our
        # programs are drawn by the main thread, which can take this one again.
        tqdm.set_lock(threading.RLock())
        tqdm.monitor_interval = 0


def text_stream(outlet: Outlet, encoding: str) -> io.TextIOWrapper:
    """Text over `outlet`; characters that `encoding` lacks become question marks."""
    return io.TextIOWrapper(outlet, encoding, errors="replace", line_buffering=True)


def _drain(outlets: list[Outlet]) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for outlet in outlets:
        outlet.drain()
