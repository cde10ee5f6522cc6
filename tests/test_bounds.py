"""Every config refuses what its fields' bounds exclude: each is tried at, just inside and just beyond them, and with NaN."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from bounded import bounds, hints, holding, tried, words

from stylevar.bounds import check_bounds
from stylevar.errors import UserError

ROOT = Path(__file__).parents[1]
PACKAGES = ("stylevar", "data", "reward", "rollout", "learner", "launch")
GIVEN = {"source": "x", "out": Path("x"), "folder": Path("x"), "styles": Path("x"), "count": 1, "shards": ("x.tar",)}
"""For fields without a default, or with one that does not do alone."""


def configs() -> list[type]:
    """Every dataclass of ours that declares a bound: itself, or by the name of a type such as `TopK`."""
    sources = {path: path.read_text(encoding="utf-8") for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    named = {name for source in sources.values() for name in re.findall(r"^(\w+) = Annotated\[", source, re.MULTILINE)}
    words = re.compile(rf"\b({'|'.join(['Annotated', *sorted(named)])})\b")
    kinds = []
    for path, source in sorted(sources.items()):
        if "@dataclass" in source and words.search(source):
            module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
            kinds += [kind for kind in vars(module).values() if dataclasses.is_dataclass(kind) and inspect.isclass(kind)]
    own = {kind for kind in kinds if not inspect.isabstract(kind) and any(bounds(hint) for hint in hints(kind).values())}
    return sorted(own, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}")


def made(kind: Any) -> Any:
    return kind(**{name: GIVEN[name] for name in hints(kind) if name in GIVEN})


def test_the_configs_of_all_programs_are_found() -> None:
    names = {kind.__name__ for kind in configs()}
    assert names > {
        "LearnerConfig",
        "GrpoConfig",
        "SftConfig",
        "EvalConfig",
        "InferConfig",
        "TrainVqvaeConfig",
        "ModelConfig",
    }


@pytest.mark.parametrize("kind", configs(), ids=lambda kind: kind.__name__)
def test_bounds_are_kept(kind: type) -> None:
    usual = made(kind)
    for name, hint in hints(kind).items():
        for number, allowed in tried(hint) if bounds(hint) else ():
            value = holding(hint, number)
            if allowed:  # by its bounds; it may still not go together with other settings
                changed = copy.copy(usual)
                object.__setattr__(changed, name, value)
                check_bounds(changed)
                continue
            with pytest.raises(UserError) as refused:
                dataclasses.replace(usual, **{name: value})
            flag = f"--{name.replace('_', '-')}"
            said = refused.value.for_command_line()
            assert said.startswith((f"{flag} {words(value)}: ", f"{name} {words(value)}: "))
