"""Load large libraries late and fast."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause Python's cyclic garbage collector, for work that creates many objects and drops few. Also a decorator.

    The collector would look at all of them again and again, which takes a quarter of the time of an import.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def loading() -> Iterator[None]:
    """Import large libraries inside this context, once a program's flags are read: --help and a mistyped flag need none.

    The collector pauses, and ignores all present objects from then on: those of a library are never freed.
    """
    with collector_paused():
        try:
            yield
        finally:
            gc.freeze()
