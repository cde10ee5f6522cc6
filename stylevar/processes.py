"""What signals mean to the processes of one program: only the one that a person started decides how to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a scheduler's wish, and a closed terminal. The first and the last reach all processes of a program at once."""


@contextlib.contextmanager
def sparing_children(*numbers: signal.Signals) -> Iterator[None]:
    """Processes that are started within never get the signals `numbers`; this process gets them as before.

    Signal handlers that a library sets within are undone.
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
    """`sparing_children` for processes of Python's `multiprocessing`, which get none of `STOP_SIGNALS`."""
    with sparing_children(signal.SIGHUP):
        # It would be started with the first worker, and would then unblock signals.
        resource_tracker.ensure_running()
    with sparing_children(*STOP_SIGNALS):
        yield
