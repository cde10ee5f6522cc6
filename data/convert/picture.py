"""One picture as a corpus has it to one picture as a shard has it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageOps

from data.convert.source import identity
from data.triplets import decode_rgb
from stylevar.errors import UserError


@dataclass(frozen=True)
class PictureConfig:
    """How pictures are stored."""

    size: int = 256
    """Side of the square images in pixels."""
    fit: Literal["crop", "stretch"] = "crop"
    """crop: shorter side to `size`, then the centre; stretch: both sides to `size`, as the published code."""
    quality: int = 95
    """JPEG quality, without chroma subsampling."""

    def __post_init__(self) -> None:
        if not 8 <= self.size <= 4096:
            raise UserError(f"--size {self.size}: must be between 8 and 4096 pixels")
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality {self.quality}: must be between 1 and 100")


@dataclass(frozen=True)
class Prepared:
    """A picture of the wanted size as JPEG bytes, and the identity of the file it came from."""

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
