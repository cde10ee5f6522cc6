"""Image bytes and files to uint8 RGB tensors, with every way that can fail named."""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from stylevar.errors import UserError
from stylevar.pictures import DAMAGE, MAX_PIXELS, Size, UnusableImage, orientation, to_u8, upright_rgb
from stylevar.text import clipped

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
_JPEG_START = b"\xff\xd8\xff"


def decode_u8(encoded: bytes) -> Tensor:
    """JPEG or PNG bytes from a shard -> uint8 [3, H, W] in [0, 255].

    Shards hold RGB only: any other mode is refused, since a silent conversion would hide that the set was prepared
    wrongly. Raises UnusableImage of the kind "unreadable image" (truncated, not an image), "too large" or "not RGB".
    """
    image = _load(io.BytesIO(encoded))[0]
    if image.mode != "RGB":
        raise UnusableImage("not RGB", f"the mode is {image.mode}")
    return to_u8(image)


@dataclass(frozen=True)
class Photo:
    """A user's picture, upright and as RGB, and the `size` that it has in its file; `image` may be a reduced one."""

    image: Image.Image
    size: Size


def load_photo(path: str | Path, short_side: int | None = None) -> Photo:
    """Read a user's picture upright and as RGB, see `upright_rgb`; of an animation the first frame.

    With `short_side`, both sides of a JPEG need only be as long as that: it is then decoded at a half, a fourth or an
    eighth of its size where that is enough, in a fraction of the time, and may have any size if it is not progressive.

    Raises UserError naming the file when it is missing, not a picture, truncated, over 64 megapixels, or of a mode that
    has no plain meaning in RGB.
    """
    path = Path(path)
    if not os.path.isfile(path):  # pathlib's own raises an error for a name that is too long
        raise UserError(f"image {clipped(path)} does not exist")
    try:
        with path.open("rb") as file:
            image, (width, height) = _load(file, short_side)
            turned = orientation(image) >= 5
            return Photo(upright_rgb(image), (height, width) if turned else (width, height))
    except (UnusableImage, OSError) as error:
        too_large = isinstance(error, UnusableImage) and error.kind == "too large"
        remedy = "scale it down" if too_large else "give an 8-bit RGB JPEG or PNG file"
        raise UserError(f"image {path} cannot be used ({error}): {remedy}") from error


def load_rgb(path: str | Path) -> Image.Image:
    """`load_photo`'s picture at its full size."""
    return load_photo(path).image


def decode_rgb(encoded: bytes) -> Image.Image:
    """As `load_rgb`, of bytes from somebody's archive; raises UnusableImage, of the kinds of `decode_u8`."""
    return upright_rgb(_load(io.BytesIO(encoded))[0])


def load_image_u8(path: str | Path, size: int) -> Tensor:
    """Read a user's picture for the model: its centre square, resized to uint8 [3, size, size]; errors as `load_rgb`."""
    return to_u8(ImageOps.fit(load_rgb(path), (size, size), Image.Resampling.LANCZOS))


def _load(source: IO[bytes], short_side: int | None = None) -> tuple[Image.Image, Size]:
    """Decode the whole image, reduced as `load_photo` allows, and tell its own size; or raise UnusableImage."""
    try:
        image = _open(source, short_side is not None)
        size = image.size
        if short_side is not None:
            image.draft(None, (short_side, short_side))
        if image.width * image.height > MAX_PIXELS:
            raise UnusableImage("too large", f"{size[0]}x{size[1]} is over {MAX_PIXELS // 1_000_000} megapixels")
        image.load()
    except UnusableImage:
        raise
    except Image.DecompressionBombError as error:
        raise UnusableImage("too large", f"it is far over {MAX_PIXELS // 1_000_000} megapixels") from error
    except UnidentifiedImageError as error:  # whose words name a Python object
        raise UnusableImage("unreadable image", "it is no picture of a known format") from error
    except DAMAGE as error:
        raise UnusableImage("unreadable image", str(error)) from error
    return image, size


def _open(source: IO[bytes], reducible: bool) -> Image.Image:
    """Read an image's header; of one that is much too large only if it can be decoded in small."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_load` has a bound of its own
            return Image.open(source, formats=FORMATS)
    except Image.DecompressionBombError:
        source.seek(0)
        if not reducible or source.read(len(_JPEG_START)) != _JPEG_START:
            raise
        source.seek(0)
        image = JpegImageFile(source)
        if image.info.get("progressive"):  # holds all coefficients in memory, however small it is decoded
            raise
        return image
