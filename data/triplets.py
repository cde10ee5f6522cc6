"""Read image bytes and files as uint8 RGB tensors, with a clear error for every kind of failure."""

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

    Shards must be RGB: other modes are refused, because a silent conversion would hide errors in the preparation. Raises
    UnusableImage of the kind "unreadable image" (truncated, not an image), "too large" or "not RGB".
    """
    image = _load(io.BytesIO(encoded))[0]
    if image.mode != "RGB":
        raise UnusableImage("not RGB", f"the mode is {image.mode}")
    return to_u8(image)


@dataclass(frozen=True)
class Photo:
    """A user's picture, upright and RGB, and the `size` in its file; `image` may be smaller."""

    image: Image.Image
    size: Size


def load_photo(path: str | Path, short_side: int | None = None) -> Photo:
    """Read a user's picture as upright RGB, see `upright_rgb`; the first frame of an animation.

    `short_side` is the smallest side that the caller needs. A JPEG is then decoded at a half, a quarter or an eighth of
    its size if that is enough, which is much faster, and may have any size if it is not progressive.

    Raises UserError naming the file if it is missing, not a picture, truncated, over 64 megapixels, or of a mode that
    does not map to RGB.
    """
    path = Path(path)
    if not os.path.isfile(path):  # pathlib's is_file raises an error for a name that is too long
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
    """`load_photo` at full size."""
    return load_photo(path).image


def decode_rgb(encoded: bytes) -> Image.Image:
    """Like `load_rgb`, for bytes from a corpus; raises UnusableImage of the kinds listed in `decode_u8`."""
    return upright_rgb(_load(io.BytesIO(encoded))[0])


def load_image_u8(path: str | Path, size: int) -> Tensor:
    """Read a user's picture for the model: its centre square as uint8 [3, size, size]. Errors as for `load_rgb`."""
    return to_u8(ImageOps.fit(load_rgb(path), (size, size), Image.Resampling.LANCZOS))


def _load(source: IO[bytes], short_side: int | None = None) -> tuple[Image.Image, Size]:
    """Decode the image, reduced as in `load_photo`; returns it and its size in the file. Raises UnusableImage."""
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
    except UnidentifiedImageError as error:  # its message names a Python object
        raise UnusableImage("unreadable image", "it is not a picture of a known format") from error
    except DAMAGE as error:
        raise UnusableImage("unreadable image", str(error)) from error
    return image, size


def _open(source: IO[bytes], reducible: bool) -> Image.Image:
    """Read an image's header. A far too large image is allowed only if it can be decoded at reduced size."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_load` has its own limit
            return Image.open(source, formats=FORMATS)
    except Image.DecompressionBombError:
        source.seek(0)
        if not reducible or source.read(len(_JPEG_START)) != _JPEG_START:
            raise
        source.seek(0)
        image = JpegImageFile(source)
        if image.info.get("progressive"):  # keeps all coefficients in memory, at any decoded size
            raise
        return image
