"""The settings of training data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

from stylevar.bounds import Remedy, check_bounds
from stylevar.errors import UserError

Weight = Annotated[float, Ge(0)]


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training triplets. Held-out triplets and those of GRPO are never augmented."""

    augment: bool = True
    """Augment the training triplets, differently in each epoch."""
    rotation: Annotated[float, Ge(0), Le(45), Remedy("it is an angle in degrees")] = 10.0
    """Largest rotation of the content in degrees; the target is rotated with it."""
    brightness: Annotated[float, Ge(0), Lt(1)] = 0.2
    """The content's brightness is multiplied by a number within this distance of 1."""
    style_crop: Annotated[float, Gt(0), Le(1)] = 0.8
    """Smallest share of the style image's area that a random crop keeps; the crop is resized to full size."""
    flip: bool = False
    """Mirror each triplet (all three images) with probability 1/2, with or without --augment."""

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def varies(self) -> bool:
        """Whether a picture differs in each epoch. Mirroring alone gives only two variants."""
        return self.augment and (self.rotation > 0 or self.brightness > 0 or self.style_crop < 1)


@dataclass(frozen=True)
class MixtureConfig:
    """How corpora are mixed. Without weights each sample occurs once per epoch, so corpora count by their size."""

    weights: tuple[tuple[str, Weight], ...] = ()
    """Share of each corpus in the batches, e.g. --weights omnistyle 0.7 imagepulse 0.3."""
    weights_end: tuple[tuple[str, Weight], ...] = ()
    """Shares at the end of the run, interpolated linearly from --weights: a curriculum."""

    def __post_init__(self) -> None:
        check_bounds(self)
        for flag, pairs in (("--weights", self.weights), ("--weights-end", self.weights_end)):
            if pairs and not any(weight for _, weight in pairs):
                raise UserError(f"{flag} {_shown(pairs)}: at least one must be positive")
            if len(dict(pairs)) < len(pairs):
                raise UserError(f"{flag} {_shown(pairs)}: a corpus is named twice")
        if self.weights_end and set(dict(self.weights_end)) != set(dict(self.weights)):
            end, start = listed(dict(self.weights_end)), listed(dict(self.weights))
            raise UserError(f"--weights-end names {end}, --weights {start}: name the same corpora")


def listed(names: Iterable[str]) -> str:
    """Names for an error, sorted."""
    return ", ".join(sorted(names)) or "nothing"


def _shown(pairs: tuple[tuple[str, float], ...]) -> str:
    return " ".join(f"{name} {weight:g}" for name, weight in pairs)
