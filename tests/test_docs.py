"""What the prose names exists: flags in some command, paths in the repository."""

from __future__ import annotations

import ast
import io
import re
import runpy
import sys
from contextlib import redirect_stdout
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from launch.prepare import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGES = ("stylevar", "data", "reward", "rollout", "learner", "launch")
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), *ROOT.glob("data/**/*.md")]
SUBCOMMANDS = {"prepare": COMMANDS, "bench": ("data", "scale", "step", "infer", "cost")}
FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*")
OTHERS = {
    "--head": "ray start",
    "--address": "ray start",
    "--block": "ray start",
    "--working-dir": "ray job submit",
    "--logdir": "tensorboard",
    "--shm-size": "docker run",
    "--help": "every command",
}
"""Flags of other programs, and one that no list of flags needs."""
EXAMPLES = re.compile(r"data/[\w-]*\*[\w-]*\.tar|data/(omnistyle|imagepulse|own|mine|set|val|train|heldout|novel)\b.*")
"""Paths that a reader has, and the repository has not."""
WRITTEN = ("summary.md",)
"""Files that a program writes."""
FORMER = ("merge.py",)
"""Programs that only tell their new name."""


def test_the_prose_is_found() -> None:
    assert len(PROSE) > 10
    assert len(commands()) > 10


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
def known_flags() -> frozenset[str]:
    """All flags that the programs list in their help."""
    found = set(OTHERS)
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
        for line in lines:
            found.update(re.findall(r"(?:^|, )(--[a-z][\w.-]*)", line.partition("  ")[0]))
    return frozenset(found)


def texts(path: Path) -> list[str]:
    """The docstrings of a module, and what its errors say."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            found += [
                part.value.value
                for part in node.body
                if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) and isinstance(part.value.value, str)
            ]
        elif isinstance(node, ast.Raise) and node.exc is not None:
            strings = [part for part in ast.walk(node.exc) if isinstance(part, (ast.JoinedStr, ast.Constant))]
            found += [ast.unparse(part) for part in strings]
    return found


def unknown_flags(text: str) -> set[str]:
    named = {flag.rstrip(".") for flag in FLAG.findall(text)}
    return {flag for flag in named if not flag.endswith("-") and flag not in known_flags()}


def test_every_flag_in_the_docs_exists() -> None:
    unknown = {path.name: missing for path in PROSE if (missing := unknown_flags(path.read_text(encoding="utf-8")))}
    assert unknown == {}


def test_every_flag_in_docstrings_and_errors_exists() -> None:
    unknown = {}
    for path in (file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))):
        if missing := unknown_flags("\n".join(texts(path))):
            unknown[str(path.relative_to(ROOT))] = missing
    assert unknown == {}


def expanded(path: str) -> list[str]:
    """`a/{b,c}.py` as its two paths."""
    parts = [part.split(",") for part in re.split(r"[{}]", path)]
    return ["".join(choice) for choice in product(*parts)]


def missing_paths(page: Path) -> set[str]:
    """Paths in backticks or links that are neither there nor an example."""
    text = page.read_text(encoding="utf-8")
    missing = set()
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in link and not (page.parent / link).exists():
            missing.add(link)
    named = {path for word in re.findall(r"`(?:python )?([\w./{},*-]+)[^`\n]*`", text) for path in expanded(word)}
    for path in named - set(WRITTEN):
        folder, _, rest = path.partition("/")
        if folder in (*PACKAGES, "tests", "docs") and re.search(r"/$|\.\w+$", rest or "."):  # a curve has neither
            there = any(ROOT.glob(path)) or EXAMPLES.fullmatch(path)
        elif re.fullmatch(r"[\w/]+\.(py|md)", path):  # by its name alone, or from the folder that is spoken of
            there = any(ROOT.glob(f"*/**/{path}")) or (ROOT / path).exists()
        else:
            continue
        if not there:
            missing.add(path)
    return missing


def test_every_path_in_the_docs_exists() -> None:
    assert {page.name: missing for page in PROSE if (missing := missing_paths(page))} == {}
