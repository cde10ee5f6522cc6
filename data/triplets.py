"""Image bytes and files to uint8 RGB tensors, with every way that can fail named."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from stylevar.errors import UserError

MAX_PIXELS = 64_000_000
"""Larger images are refused before they are decoded: a small file can unpack to gigabytes."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation."""
# Between them, these are what Pillow's decoders and its EXIF reader raise on damaged data.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error)
OPAQUE_MODES = ("RGB", "L", "1", "P", "CMYK", "YCbCr")
ALPHA_MODES = ("RGBA", "LA", "PA")


class UnusableImage(ValueError):
    """An image that cannot be decoded to what was asked for. `kind` is one of a few words, to count by."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind = kind


def to_u8(image: Image.Image) -> Tensor:
    """A picture of mode RGB -> uint8 [3, H, W] in [0, 255]."""
    # Band by band is half the time of turning [H, W, 3] round.
    return torch.from_numpy(np.stack([np.asarray(band) for band in image.split()]))


def decode_u8(encoded: bytes) -> Tensor:
    """JPEG or PNG bytes from a shard -> uint8 [3, H, W] in [0, 255].

    Shards hold RGB only: any other mode is refused, since a silent conversion would hide that the set was prepared
    wrongly. Raises UnusableImage of the kind "unreadable image" (truncated, not an image), "too large" or "not RGB".
    """
    image = _open(io.BytesIO(encoded))
    if image.mode != "RGB":
        raise UnusableImage("not RGB", f"the mode is {image.mode}")
    return to_u8(image)


def load_rgb(path: str | Path) -> Image.Image:
    """Read a user's picture upright and as RGB: transparency is laid on white; grey, palette and CMYK are converted.

    Raises UserError naming the file when it is missing, not a picture, truncated, over 64 megapixels, or of a mode that
    has no plain meaning in RGB (16 or 32 bits a channel).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"image {path} does not exist")
    try:
        return _upright_rgb(_open(path))
    except UnusableImage as error:
        raise UserError(f"image {path} cannot be used ({error}): give an 8-bit RGB JPEG or PNG file") from error


def decode_rgb(encoded: bytes) -> Image.Image:
    """As `load_rgb`, of bytes from somebody's archive; raises UnusableImage, of the kinds of `decode_u8`."""
    return _upright_rgb(_open(io.BytesIO(encoded)))


def _upright_rgb(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: that also writes the other EXIF fields anew, which fails on odd ones.
    try:
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except DAMAGE:  # the pixels are whole, and nobody knows of a turn
        turn = None
    if turn is not None:
        image = image.transpose(turn)
    if image.mode not in OPAQUE_MODES + ALPHA_MODES:
        raise UnusableImage("not RGB", f"the mode is {image.mode}")
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def load_image_u8(path: str | Path, size: int) -> Tensor:
    """Read a user's picture for the model: its centre square, resized to uint8 [3, size, size]; errors as `load_rgb`."""
    return to_u8(ImageOps.fit(load_rgb(path), (size, size), Image.Resampling.LANCZOS))


def _open(source: io.BytesIO | Path) -> Image.Image:
    """Decode the whole image, or raise UnusableImage."""
    try:
        image = Image.open(source, formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            size = f"{image.width}x{image.height}"
            raise UnusableImage("too large", f"{size} is over {MAX_PIXELS // 1_000_000} megapixels")
        image.load()
    except UnusableImage:
        raise
    except Image.DecompressionBombError as error:
        raise UnusableImage("too large", str(error)) from error
    except DAMAGE as error:
        raise UnusableImage("unreadable image", str(error)) from error
    return image
