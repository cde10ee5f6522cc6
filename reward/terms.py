"""Parse `--reward`: one distance, or a weighted sum of several."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stylevar.errors import UserError

NAMES = (
    "lite",
    "dreamsim",
    "lpips",
    "lpips_alex",
    "style",
    "content",
    "cfsd",
    "clip",
    "dino",
    "ssim",
    "psnr",
    "edges",
    "color",
)
"""All distances that can be a reward; docs/rewards.md explains what each is good for."""


@dataclass(frozen=True)
class Term:
    """One distance of a reward: a name in `NAMES` or `package.module:Class`, and its positive weight."""

    name: str
    weight: float

    @property
    def is_custom(self) -> bool:
        """Whether this is a user's own class."""
        return ":" in self.name


def parse_terms(text: str, scale: float) -> tuple[Term, ...]:
    """Parse `lite`, `dreamsim=5.0,lpips=1.0` or `package.module:Class=2`: at least one term, in the order given.

    A name without a weight gets the weight `scale`. Raises UserError for an unknown or repeated name, and for a weight
    that is not a positive number.
    """
    terms: list[Term] = []
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        if name not in NAMES and not (":" in name and all(name.split(":", 1))):
            raise UserError(
                f"unknown reward {name!r}: choose one of {', '.join(NAMES)}, a class such as package.module:Class, "
                "or a weighted sum such as dreamsim=5.0,lpips=1.0"
            )
        terms.append(Term(name, _weight(name, number) if equals else scale))
    names = [term.name for term in terms]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--reward {text}: {repeated[0]} is given twice; give each distance once, with its total weight")
    return tuple(terms)


def _weight(name: str, number: str) -> float:
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not (weight > 0 and math.isfinite(weight)):
        raise UserError(f"--reward {name}={number}: the weight must be a positive number")
    return weight
