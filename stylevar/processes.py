"""Signal handling in multi-process programs: only the process that the user started decides how to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a scheduler's stop, and a closed terminal. The first and the last reach all processes of a program at once."""


@contextlib.contextmanager
def sparing_children(*numbers: signal.Signals) -> Iterator[None]:
    """Processes started inside the context never get the signals `numbers`; this process still does.

    Signal handlers that a library sets inside the context are undone.
    """
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # a new process inherits it
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """`sparing_children` for Python's `multiprocessing`: its processes get none of `STOP_SIGNALS`."""
    with sparing_children(signal.SIGHUP):
        # Otherwise it would start with the first worker and unblock signals.
        resource_tracker.ensure_running()
    with sparing_children(*STOP_SIGNALS):
        yield
