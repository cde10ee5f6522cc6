"""Convert users' pictures: upright RGB, fitted to the model's square, and results back to the picture's shape."""

from __future__ import annotations

import struct

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from stylevar.colour import to_srgb
from stylevar.fit import Fit, Restore

Size = tuple[int, int]

MAX_PIXELS = 64_000_000
"""Larger pictures are neither decoded (a small file can unpack to gigabytes) nor written."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""{EXIF orientation: the transpose that undoes it}."""
# All exceptions that Pillow's decoders and EXIF reader raise for damaged data.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error)
OPAQUE_MODES = ("RGB", "L", "1", "P", "CMYK", "YCbCr")
ALPHA_MODES = ("RGBA", "LA", "PA")
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


class UnusableImage(ValueError):
    """An image that cannot be decoded as requested. `kind` is a short category, used for counting."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind = kind


def upright_rgb(image: Image.Image) -> Image.Image:
    """Decode any picture to an upright one of mode RGB; a second call changes nothing.

    Applies the EXIF orientation, converts the colours of an ICC profile to sRGB, puts transparency on white, converts
    grey, palette and CMYK, and scales 16-bit grey to 8 bits. Takes an animation's current frame, the first one of a file.
    Raises UnusableImage of the kind "not RGB" for modes that do not map to RGB (32 bits per channel, CIELAB).
    """
    profile = image.info.get("icc_profile")
    turn = UPRIGHT.get(orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode in DEEP_MODES or (image.mode == "I" and image.format == "PNG"):  # 16-bit grey PNGs in older Pillows
        image = _eight_bits(image)
    if image.mode not in OPAQUE_MODES + ALPHA_MODES:
        raise UnusableImage("not RGB", f"the mode is {image.mode}")
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        alpha = image.convert("RGBA").getchannel("A")
        image = to_srgb(image, profile)
        image.putalpha(alpha)
        image, profile = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image), None
    image = to_srgb(image, profile)  # a copy, even of RGB
    image.info.clear()  # includes the orientation, which has been applied
    return image


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; from 5 on, width and height are swapped."""
    # Not ImageOps.exif_transpose: it rewrites the other EXIF fields too, and fails on unusual ones.
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except DAMAGE:  # the pixels are intact; the orientation is unknown
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale a 16-bit grey picture to mode L, or to LA if one grey value marks transparency."""
    deep = np.asarray(image).astype(np.float64)
    grey = Image.fromarray((deep / 257).round().clip(0, 255).astype(np.uint8))
    clear = image.info.get("transparency")
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(deep == clear, 0, 255).astype(np.uint8)))
    return grey


def to_u8(image: Image.Image) -> Tensor:
    """A picture of mode RGB -> uint8 [3, H, W] in [0, 255]."""
    # Copying band by band takes half the time of permuting [H, W, 3].
    return torch.from_numpy(np.stack([np.asarray(band) for band in image.split()]))


def from_u8(image_u8: Tensor) -> Image.Image:
    """uint8 [3, H, W] -> a picture of mode RGB."""
    return Image.fromarray(image_u8.permute(1, 2, 0).contiguous().cpu().numpy())


def square(image: Image.Image, side: int, fit: Fit) -> Image.Image:
    """Fit an RGB picture of any shape to side x side pixels (LANCZOS).

    crop: the centre square. stretch: the whole picture, distorted. pad: the whole picture, undistorted and centred; the
    margins are its mirror image, because the model would treat a plain colour as part of the scene.
    """
    if fit == "crop":
        return ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
    if fit == "stretch":
        return image.resize((side, side), Image.Resampling.LANCZOS)
    width, height = padded_size(image.size, side)
    inner = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    left, top, right, bottom = _padded_box(image.size, side)
    return Image.fromarray(np.pad(inner, ((top, side - bottom), (left, side - right), (0, 0)), mode="symmetric"))


def padded_size(size: Size, side: int) -> Size:
    """Width and height of a picture inside its padded square; the longer one is `side`."""
    longer = max(size)
    return max(1, round(size[0] * side / longer)), max(1, round(size[1] * side / longer))


def _padded_box(size: Size, side: int) -> tuple[int, int, int, int]:
    width, height = padded_size(size, side)
    left, top = (side - width) // 2, (side - height) // 2
    return left, top, left + width, top + height


def restored(result: Image.Image, size: Size, fit: Fit, to: Restore) -> Image.Image:
    """Undo `square`: give the result for a content picture of `size` that picture's shape.

    Args:
        result: side x side pixels.
        to: "aspect" keeps the model's resolution: the square itself under crop, the picture without its margins under
            pad, and under stretch a picture of `size`'s aspect ratio with as many pixels as the square. "size" resizes
            that to `size` (under crop to a square of its shorter side), to at most 64 megapixels. "square" is the
            model's output.
    """
    if to == "square":
        return result
    side = result.width
    goal = size
    if fit == "crop":
        goal = (min(size),) * 2 if to == "size" else (side, side)
    elif fit == "pad":
        result = result.crop(_padded_box(size, side))
        goal = size if to == "size" else result.size
    elif to == "aspect":
        goal = _bounded(size, side * side, enlarge=True)
    goal = _bounded(goal, MAX_PIXELS)
    return result if goal == result.size else result.resize(goal, Image.Resampling.LANCZOS)


def _bounded(size: Size, pixels: int, enlarge: bool = False) -> Size:
    """Scale `size` to about `pixels` pixels, keeping its shape: only down, or also up with `enlarge`."""
    factor = (pixels / (size[0] * size[1])) ** 0.5
    if factor >= 1 and not enlarge:
        return size
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
