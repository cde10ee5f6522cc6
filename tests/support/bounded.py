"""The bounds that configs declare in their types, and numbers around them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from math import inf, nan
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

Number = int | float


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
