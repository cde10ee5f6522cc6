"""Running a program's `main` as the command line would."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest


def exit_code(monkeypatch: pytest.MonkeyPatch, main: Callable[[], None], *argv: object) -> int:
    """The code that `main` ends with, given these arguments."""
    monkeypatch.setattr(sys, "argv", ["program", *map(str, argv)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0
