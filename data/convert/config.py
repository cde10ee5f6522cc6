"""The settings of a conversion."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Le

from data.convert.source import RawTriplet
from data.convert.split import SplitConfig
from stylevar.bounds import check_bounds


@dataclass(frozen=True)
class PictureConfig:
    """How pictures are stored."""

    size: Annotated[int, Ge(8), Le(4096)] = 256
    """Side of the square images in pixels."""
    fit: Literal["crop", "stretch"] = "crop"
    """crop: shorter side to `size`, then the centre square; stretch: both sides to `size`, like the published code."""
    quality: Annotated[int, Ge(1), Le(100)] = 95
    """JPEG quality, without chroma subsampling."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class FilterConfig:
    """Exclude triplets by their flags and scores in the corpus."""

    drop_flag: tuple[str, ...] = ()
    """Exclude triplets with any of these artifact flags."""
    min_score: dict[str, float] = field(default_factory=dict)
    """Exclude triplets with a lower or missing score, e.g. --min-score aesthetic 5."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def refusal(self, triplet: RawTriplet) -> str | None:
        """Why `triplet` is excluded, or None."""
        for flag in self.drop_flag:
            if triplet.flags.get(flag):
                return f"flag {flag}"
        for name, bound in self.min_score.items():
            score = triplet.scores.get(name)
            if score is None or score < bound:
                return f"score {name} is {score}, below {bound}"
        return None


@dataclass(frozen=True)
class ConvertConfig:
    """The settings that, with the source, determine the bytes of a prepared set."""

    dataset: str
    picture: PictureConfig
    split: SplitConfig
    filters: FilterConfig
