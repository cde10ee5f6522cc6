"""Worker processes that end with the program, not earlier and not later."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from stylevar.errors import UserError

CONTEXT = multiprocessing.get_context("spawn")


@contextmanager
def process_pool(workers: int, start: Callable[..., None] | None = None, *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """A pool of `workers` processes. Each one first calls `start(*arguments)`.

    Submit inside `starting_workers`, so that only this process gets stop signals. If an error or a signal leaves the block,
    the processes end at once. Raises UserError if one of them is killed.
    """
    pool = ProcessPoolExecutor(workers, CONTEXT, _begin, (start, arguments))
    try:
        yield pool
    except BaseException as error:
        children = list((getattr(pool, "_processes", None) or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for child in children:
            child.kill()
        for child in children:
            child.join()
        if isinstance(error, BrokenProcessPool):
            raise UserError(
                "a worker process was killed, perhaps because memory ran out: run the same command again to continue, if "
                "necessary with a smaller --workers"
            ) from error
        raise
    pool.shutdown()


def _begin(start: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    end_with_parent()
    if start is not None:
        start(*arguments)


def end_with_parent(_: int = 0) -> None:
    """Make this process end with the program that started it, even if that program is killed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit once the parent is gone: nothing else ends a worker whose parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
