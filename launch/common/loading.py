"""Load large libraries late and fast."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Import large libraries inside this context, once a program's flags are read: --help and a mistyped flag need none.

    Imports create a million objects that are never freed. Python's cyclic garbage collector would look at them again and
    again, which takes a quarter of the time. It pauses inside the context, and ignores all present objects afterwards.
    Also a decorator, for functions that load what they work with.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
