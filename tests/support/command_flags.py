"""Every command of `launch/`, and the flags that its help lists."""

from __future__ import annotations

import io
import re
import runpy
import sys
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest

from launch.prepare import COMMANDS

ROOT = Path(__file__).parents[2]
SUBCOMMANDS = {"prepare": COMMANDS, "bench": ("data", "scale", "step", "infer", "sft", "gpu", "cost", "credit", "learn")}
FORMER = ("merge.py",)
"""Programs that only tell their new name."""


def commands() -> list[list[str]]:
    """Every program of `launch/`, and every subcommand, as words."""
    files = [path for path in sorted((ROOT / "launch").glob("*.py")) if path.name not in FORMER]
    programs = [path for path in files if "__main__" in path.read_text(encoding="utf-8")]
    found = []
    for path in programs:
        found.append([str(path)])
        found += [[str(path), name] for name in SUBCOMMANDS.get(path.stem, ())]
    return found


@cache
def flags() -> dict[tuple[str, ...], frozenset[str]]:
    """The flags of every command, as its help lists them: ("prepare", "folder") has "--out", "--dataset", ..."""
    by_command = {}
    for program, *words in commands():
        out = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
            patch.setattr(sys, "argv", [program, *words, "--help"])
            patch.setattr(sys, "path", list(sys.path))
            patch.setenv("COLUMNS", "100")
            with pytest.raises(SystemExit) as end:
                runpy.run_path(program, run_name="__main__")
        assert end.value.code == 0, out.getvalue()
        # A flag begins its line, and what is said of it stands further to the right.
        lines = re.findall(r"^[ │]{1,4}((?:-\w, )?--[a-z].*)", out.getvalue(), re.MULTILINE)
        assert lines or not words, program
        names = [name for line in lines for name in re.findall(r"(?:^|, )(--[a-z][\w.-]*)", line.partition("  ")[0])]
        by_command[(Path(program).stem, *words)] = frozenset(names)
    return by_command
