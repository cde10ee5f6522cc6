"""A disk that takes no more, without one: a limit on the size of files, which every writer of the process meets."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def file_size_limit() -> Iterator[Callable[[], None]]:
    """Yield what starts the limit: from then on, no file of this process grows beyond a byte ("File too large")."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def limit_in(
    patch: pytest.MonkeyPatch,
    limit: Callable[[], None],
    owner: type,
    method: str,
    when: Callable[[Any], bool] = lambda _: True,
) -> None:
    """Start the limit as soon as `method` of an object is called for which `when` holds."""
    original = getattr(owner, method)

    def limited(self: Any, *arguments: Any, **named: Any) -> Any:
        if when(self):
            limit()
        return original(self, *arguments, **named)

    patch.setattr(owner, method, limited)
