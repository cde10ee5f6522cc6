"""Every config refuses what its fields' bounds exclude: each is tried at, just inside and just beyond them, and with NaN."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import math
import re
from collections.abc import Iterator
from math import inf, nan
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest
from annotated_types import Ge, Gt, Le, Lt

from stylevar.bounds import check_bounds
from stylevar.errors import UserError

ROOT = Path(__file__).parents[1]
PACKAGES = ("stylevar", "data", "reward", "rollout", "learner", "launch")
GIVEN = {"source": "x", "out": Path("x"), "folder": Path("x"), "styles": Path("x"), "count": 1, "shards": ("x.tar",)}
"""For fields without a default, or with one that does not do alone."""
Number = int | float


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


def hints(kind: type) -> dict[str, Any]:
    named = get_type_hints(kind, include_extras=True)
    return {field.name: named[field.name] for field in dataclasses.fields(kind)}


def parts(hint: Any) -> tuple[Any, ...]:
    """The types within a type, without None and the dots of an open tuple."""
    inner = get_args(hint)[:1] if get_origin(hint) is Annotated else get_args(hint)
    return tuple(part for part in inner if part not in (NoneType, Ellipsis))


def bounds(hint: Any) -> list[Gt | Ge | Lt | Le]:
    """All bounds in a type, at any depth."""
    own = hint.__metadata__ if get_origin(hint) is Annotated else ()
    return [item for item in own if isinstance(item, (Gt, Ge, Lt, Le))] + [b for part in parts(hint) for b in bounds(part)]


def whole(hint: Any) -> bool:
    """Whether a type's numbers are integers."""
    return hint is int or any(whole(part) for part in parts(hint))


def holding(hint: Any, number: Number) -> Any:
    """A value of a type with `number` wherever it has one."""
    if get_origin(hint) is tuple:
        return tuple(holding(part, number) for part in parts(hint))
    if get_origin(hint) in (Annotated, Union, UnionType):
        return holding(parts(hint)[0], number)
    return number if hint in (int, float) else "word"


def tried(hint: Any) -> Iterator[tuple[Number, bool]]:
    """Numbers around the bounds of a type, and whether they are allowed."""

    def beside(bound: Number, direction: float) -> Number:
        return bound + int(math.copysign(1, direction)) if whole(hint) else math.nextafter(bound, direction)

    yield from ((nan, False), (-inf, False), (inf, any(isinstance(bound, Le) and bound.le == inf for bound in bounds(hint))))
    for bound in bounds(hint):
        match bound:
            case Gt(gt=low):
                yield from ((low, False), (beside(low, inf), True))
            case Ge(ge=low):
                yield from ((low, True), (beside(low, inf), True), (beside(low, -inf), False))
            case Lt(lt=high):
                yield from ((high, False), (beside(high, -inf), True))
            case Le(le=high) if high != inf:
                yield from ((high, True), (beside(high, -inf), True), (beside(high, inf), False))


def words(value: Any) -> str:
    return " ".join(map(words, value)) if isinstance(value, tuple) else str(value)


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
            assert str(refused.value).startswith((f"{flag} {words(value)}: ", f"{name} {words(value)}: "))
