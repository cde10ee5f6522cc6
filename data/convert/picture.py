"""Convert one picture of a corpus to one picture of a shard."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le
from PIL import Image, ImageOps

from data.convert.source import identity
from data.triplets import decode_rgb
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
class Prepared:
    """A picture of the requested size as JPEG bytes, and the identity of its source file."""

    jpeg: bytes
    id: str


def prepare_picture(data: bytes, config: PictureConfig) -> Prepared:
    """Decode, resize once (LANCZOS) and encode. Raises UnusableImage."""
    image = decode_rgb(data)
    side = (config.size, config.size)
    if config.fit == "crop":
        image = ImageOps.fit(image, side, Image.Resampling.LANCZOS)
    else:
        image = image.resize(side, Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=config.quality, subsampling=0)
    return Prepared(out.getvalue(), identity(data))
