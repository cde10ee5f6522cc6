"""Stop on Ctrl-C, a scheduler's SIGTERM or a closed terminal's SIGHUP, after saving the work done."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, ClassVar, Protocol, TypeVar

from stylevar.processes import STOP_SIGNALS

STOPPED = 130
"""Exit code of a run that was stopped and can be resumed."""
GRACE = 10.0
"""Seconds that a program has to end by itself after the second Ctrl-C."""

T = TypeVar("T")
Handlers = dict[signal.Signals, Any]


class Interrupts:
    """While a program runs, every stop signal raises KeyboardInterrupt, as Ctrl-C does.

    The second Ctrl-C ends the program within `GRACE` seconds, whatever it waits for, and the third one at once. A second
    SIGTERM or SIGHUP has no such effect, because schedulers and closing terminals send them twice. A signal that was
    ignored when the program started (`nohup`) stays ignored.
    """

    current: ClassVar[Interrupts | None] = None

    def __init__(self) -> None:
        self.asked = False
        """Whether a stop signal has arrived."""
        self._before: Handlers = {}

    def __enter__(self) -> Interrupts:
        self._before = _take(self._interrupt)
        Interrupts.current = self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        Interrupts.current = None
        _give_back(self._before)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            if number != signal.SIGINT:
                return
            # Not `threading`: this thread may be holding one of its locks.
            _thread.start_new_thread(_end, ())
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        self.asked = True
        raise KeyboardInterrupt


class Stop(Protocol):
    """Tells whether a stop was requested. It listens for signals inside `with stop:`."""

    @property
    def requested(self) -> bool: ...

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class StopRequest:
    """Inside `with StopRequest() as stop`, the first signal only sets `stop.requested`; a later Ctrl-C acts as usual.

    Outside the main thread it catches nothing, because Python allows no signal handlers there.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Handlers = {}

    def __enter__(self) -> StopRequest:
        self._before = _take(self._request)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def until_requested(self, items: Iterable[T]) -> Iterator[T]:
        """Yield `items` until a stop is requested."""
        with self:
            for item in items:
                yield item
                if self.requested:
                    return

    def _request(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested = True
            if Interrupts.current is not None:
                Interrupts.current.asked = True
            # Not print: Ray replaces it with a version that takes a lock.
            sys.stderr.write("\nstopping as soon as the current work is saved; press Ctrl-C again to stop at once\n")
        elif number == signal.SIGINT:
            usual = self._before[signal.SIGINT]
            self._restore()
            usual(number, frame)

    def _restore(self) -> None:
        _give_back(self._before)
        self._before = {}


def _take(handler: Callable[[int, FrameType | None], None]) -> Handlers:
    """Install `handler` for all stop signals that are not ignored. Returns the previous handlers."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    heard = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


def _give_back(handlers: Handlers) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _end() -> None:
    time.sleep(GRACE)
    os._exit(STOPPED)
