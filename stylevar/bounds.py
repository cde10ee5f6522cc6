"""Bounds of settings, declared in the field's type: `lr: Annotated[float, Gt(0)] = 1e-5`.

Every number of a config must be finite, with or without bounds. Where infinity means "no limit", the upper bound
includes it: `grad_clip: Annotated[float, Gt(0), Le(inf)] = 1.0`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import repeat
from math import inf, isfinite
from numbers import Integral, Real
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from annotated_types import BaseMetadata, Ge, GroupedMetadata, Gt, Le, Lt

from stylevar.errors import UserError


@dataclass(frozen=True)
class Remedy:
    """Advice that follows the bound in the error message: `Annotated[float, Ge(0), Lt(1), Remedy("try 0.99")]`."""

    text: str


@dataclass(frozen=True)
class Limits:
    """The interval that a number must lie in. It never contains NaN, and infinity only if it is closed at infinity.

    `whole`: the number must be an integer, as in a field of type int; a file may hold 1.5 there.
    """

    low: float = -inf
    low_closed: bool = False
    high: float = inf
    high_closed: bool = False
    remedy: str = ""
    whole: bool = False

    @staticmethod
    def of(metadata: Sequence[Any]) -> Limits:
        """The limits declared by the metadata of an `Annotated` type. Metadata of other libraries is skipped."""
        given: dict[str, Any] = {}
        for item in metadata:
            match item:
                case Gt(gt=low):
                    given |= {"low": low}
                case Ge(ge=low):
                    given |= {"low": low, "low_closed": True}
                case Lt(lt=high):
                    given |= {"high": high}
                case Le(le=high):
                    given |= {"high": high, "high_closed": True}
                case Remedy(text):
                    given |= {"remedy": f"; {text}"}
                case BaseMetadata() | GroupedMetadata():
                    raise TypeError(f"{item} would not be checked: use Gt, Ge, Lt and Le")
        return Limits(**given)

    def hold(self, number: Any) -> bool:
        """Whether `number` is a number within the limits."""
        if not _is_number(number) or (self.whole and isfinite(number) and not isinstance(number, Integral)):
            return False
        at_end = (self.low_closed and number == self.low) or (self.high_closed and number == self.high)
        return at_end or self.low < number < self.high

    def demand(self, number: Any) -> str:
        """The text for a number outside the limits: the bound and the remedy."""
        if not _is_number(number):
            return f"must be a number{self.remedy}"
        if self.whole and isfinite(number) and not isinstance(number, Integral):
            return f"must be a whole number{self.remedy}"
        if isfinite(self.low) and isfinite(self.high):
            interval = f"{'[' if self.low_closed else '('}{self.low}, {self.high}{']' if self.high_closed else ')'}"
            return f"must lie in {interval}{self.remedy}"
        wanted = []
        if isfinite(self.low):
            wanted.append(f"at least {self.low}" if self.low_closed else f"above {self.low}" if self.low else "positive")
        if isfinite(self.high):
            wanted.append(f"at most {self.high}" if self.high_closed else f"below {self.high}")
        if not isfinite(number) and not self.high_closed:
            wanted.append("finite")
        return f"must be {' and '.join(wanted)}{self.remedy}"


def as_flag(name: str, value: object, why: str) -> UserError:
    """The error for a setting given as a flag."""
    return UserError(f"--{name.replace('_', '-')} {value}: {why}")


def as_named(name: str, value: object, why: str) -> UserError:
    """The error for a setting read from a file."""
    return UserError(f"{name} {value}: {why}")


def check_bounds(config: object, refusal: Callable[[str, object, str], UserError] = as_flag) -> None:
    """Raise UserError for the first number in a dataclass that violates the bounds of its field.

    Call it in `__post_init__`. It checks int and float fields, optional ones, and tuples and dicts of them; None passes.
    `refusal` builds the error from the field's name, its value, and the text with the bound and the remedy.
    """
    kind: Any = type(config)  # mypy does not consider classes hashable
    for name, hint in _hints(kind).items():
        value = getattr(config, name)
        for number, limits in _numbers(value, hint):
            if not limits.hold(number):
                several = isinstance(value, (tuple, dict))
                why = f"each {limits.demand(number)}" if several else limits.demand(number)
                raise refusal(name, _shown(value) if several else value, why)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real)


@cache
def _hints(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields. Cached, because they are strings in the code and slow to evaluate."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def _numbers(value: Any, hint: Any, limits: Limits = Limits()) -> Iterator[tuple[Any, Limits]]:
    """The items of `value` that the type `hint` declares as numbers, each with its own or its container's limits."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in (int, float):
        yield value, replace(limits, whole=hint is int)
    elif origin is Annotated:
        yield from _numbers(value, arguments[0], Limits.of(arguments[1:]))
    elif origin in (Union, UnionType):
        if value is not None:
            for option in arguments:
                yield from _numbers(value, option, limits)
    elif origin is tuple:
        kinds = repeat(arguments[0]) if arguments[-1] is Ellipsis else arguments
        for item, kind in zip(value, kinds, strict=False):
            yield from _numbers(item, kind, limits)
    elif origin is dict:
        for item in value.values():
            yield from _numbers(item, arguments[1], limits)


def _shown(value: Any) -> str:
    """A value as it is typed after its flag."""
    if isinstance(value, dict):
        value = tuple(value.items())
    return " ".join(map(_shown, value)) if isinstance(value, tuple) else str(value)
