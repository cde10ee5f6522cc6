"""Convert one picture of a corpus to one picture of a shard."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image, ImageOps

from data.convert.config import PictureConfig
from data.convert.source import identity
from data.triplets import decode_rgb


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
