"""Clocks: code marks the phases of its work, and the caller measures them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Clock = Callable[[str], AbstractContextManager[None]]
"""`with clock("decode"): ...`; phases may be nested."""


def untimed(phase: str) -> AbstractContextManager[None]:
    """A no-op clock."""
    return nullcontext()
