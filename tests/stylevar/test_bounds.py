"""Bounds beside the fields: what is refused, and in which words."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, nan
from typing import Annotated, Any

import pytest
from annotated_types import Ge, Gt, Interval, Le, Lt

from stylevar.bounds import Remedy, as_named, check_bounds
from stylevar.errors import UserError


@dataclass(frozen=True)
class Config:
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    share: Annotated[float, Ge(0), Lt(1)] = 0.5
    batch: Annotated[int, Ge(1)] = 8
    clip: Annotated[float, Gt(0), Le(inf)] = 1.0
    margin: Annotated[float, Gt(0.5)] = 1.0
    score: Annotated[float, Le(2)] = 0.0
    loss: Annotated[float, Lt(2)] = 0.0
    decay: Annotated[float, Ge(0), Lt(1), Remedy("try 0.99")] = 0.9
    threads: Annotated[int, Ge(0), Remedy("0 takes all cores")] = 0
    steps: Annotated[int, Ge(1)] | None = None
    sizes: tuple[Annotated[int, Ge(1)], ...] = ()
    rounds: Annotated[int | None, Ge(1)] = None
    shares: Annotated[tuple[float, ...], Ge(0), Le(1)] = ()
    betas: tuple[Annotated[float, Ge(0)], Annotated[float, Lt(1)]] = (0.9, 0.9)
    weights: tuple[tuple[str, Annotated[float, Ge(0)]], ...] = ()
    least: dict[str, float] = field(default_factory=dict)
    free: float = -3.0
    name: str = "nan"
    exact: bool = False

    def __post_init__(self) -> None:
        check_bounds(self)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"clip": inf},
        {"share": 0},
        {"steps": 1},
        {"sizes": (1, 2)},
        {"betas": (3.0, -1.0)},
        {"weights": (("a", 0.0), ("b", 2.0))},
        {"least": {"a": -1.0}},
        {"free": -1e300},
    ],
)
def test_what_is_within_its_bounds_passes(fields: dict[str, Any]) -> None:
    Config(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learning_rate": 0.0}, "--learning-rate 0.0: must be positive"),
        ({"learning_rate": nan}, "--learning-rate nan: must be positive and finite"),
        ({"learning_rate": inf}, "--learning-rate inf: must be positive and finite"),
        ({"share": 1.0}, "--share 1.0: must lie in [0, 1)"),
        ({"share": nan}, "--share nan: must lie in [0, 1)"),
        ({"batch": 0}, "--batch 0: must be at least 1"),
        ({"clip": nan}, "--clip nan: must be positive"),
        ({"clip": -inf}, "--clip -inf: must be positive"),
        ({"margin": 0.5}, "--margin 0.5: must be above 0.5"),
        ({"score": 2.5}, "--score 2.5: must be at most 2"),
        ({"loss": 2.0}, "--loss 2.0: must be below 2"),
        ({"loss": -inf}, "--loss -inf: must be below 2 and finite"),
        ({"decay": 1}, "--decay 1: must lie in [0, 1); try 0.99"),
        ({"threads": -1}, "--threads -1: must be at least 0; 0 takes all cores"),
        ({"steps": 0}, "--steps 0: must be at least 1"),
        ({"rounds": 0}, "--rounds 0: must be at least 1"),
        ({"shares": (0.5, 1.5)}, "--shares 0.5 1.5: each must lie in [0, 1]"),
        ({"sizes": (4, 0)}, "--sizes 4 0: each must be at least 1"),
        ({"betas": (-0.1, 0.5)}, "--betas -0.1 0.5: each must be at least 0"),
        ({"betas": (0.1, 1.0)}, "--betas 0.1 1.0: each must be below 1"),
        ({"weights": (("a", 1.0), ("b", -1.0))}, "--weights a 1.0 b -1.0: each must be at least 0"),
        ({"least": {"a": nan}}, "--least a nan: each must be finite"),
        ({"free": nan}, "--free nan: must be finite"),
        ({"learning_rate": "1e-3"}, "--learning-rate 1e-3: must be a number"),
        ({"batch": None}, "--batch None: must be a number"),
    ],
)
def test_what_is_not_is_refused_with_its_flag_its_value_and_the_bound(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        Config(**fields)
    assert str(refused.value) == message


def test_settings_that_are_no_flags_have_their_own_names() -> None:
    @dataclass
    class Shape:
        style_depth: Annotated[int, Ge(1)] = 0

    with pytest.raises(UserError, match=r"^style_depth 0: must be at least 1$"):
        check_bounds(Shape(), as_named)


def test_bounds_that_would_not_be_checked_are_a_bug() -> None:
    @dataclass
    class Wrong:
        share: Annotated[float, Interval(ge=0, le=1)] = 0.5

    with pytest.raises(TypeError, match="use Gt, Ge, Lt and Le"):
        check_bounds(Wrong())
