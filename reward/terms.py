"""Parse `--reward`: one distance, or a weighted sum of several."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from stylevar.errors import UserError
from stylevar.references import Reference

NAMES = (
    "lite",
    "lite_grey",
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
    """One distance of a reward: a name in `NAMES` or `package.module:Class`, its positive weight, and its reference."""

    name: str
    weight: float
    reference: Reference = "target"

    @property
    def is_custom(self) -> bool:
        """Whether this is a user's own class."""
        return ":" in self.name

    def label(self, name: str | None = None) -> str:
        """The name in logs: its own or `name`, followed by `@content` or `@style` unless it compares with the target."""
        return (name or self.name) + ("" if self.reference == "target" else f"@{self.reference}")


def parse_terms(text: str, scale: float) -> tuple[Term, ...]:
    """Parse `lite`, `dreamsim=5.0,lpips=1.0`, `color@style=0.05` or `package.module:Class=2`: one term or more, in order.

    A name without a weight gets the weight `scale`; one without `@` compares with the target. Raises UserError for an
    unknown name or reference, for a repeated term, and for a weight that is not a positive number.
    """
    terms: list[Term] = []
    for part in text.split(","):
        what, equals, number = (piece.strip() for piece in part.partition("="))
        name, at, reference = (piece.strip() for piece in what.partition("@"))
        if name not in NAMES and not (":" in name and all(name.split(":", 1))):
            raise UserError(
                f"unknown reward {name!r}: choose one of {', '.join(NAMES)}, a class such as package.module:Class, "
                "or a weighted sum such as dreamsim=5.0,lpips=1.0"
            )
        weight = _weight(what, number) if equals else scale
        terms.append(Term(name, weight, _reference(what, reference) if at else "target"))
    labels = [term.label() for term in terms]
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise UserError(f"--reward {text}: {repeated[0]} is given twice; give each distance once, with its total weight")
    return tuple(terms)


def _reference(what: str, name: str) -> Reference:
    for reference in get_args(Reference):
        if name == reference:
            return reference
    raise UserError(f"--reward {what}: unknown reference {name!r}; choose @target, @content or @style")


def _weight(name: str, number: str) -> float:
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not (weight > 0 and math.isfinite(weight)):
        raise UserError(f"--reward {name}={number}: the weight must be a positive number")
    return weight
