"""Pictures as people have them: upright RGB, cut to the model's square, and back to their own shape."""

from __future__ import annotations

import struct
from typing import Literal

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from stylevar.colour import to_srgb

Fit = Literal["crop", "pad", "stretch"]
Restore = Literal["aspect", "size", "square"]
Size = tuple[int, int]

MAX_PIXELS = 64_000_000
"""More are neither decoded (a small file can unpack to gigabytes) nor written."""

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
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


class UnusableImage(ValueError):
    """An image that cannot be decoded to what was asked for. `kind` is one of a few words, to count by."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind = kind


def upright_rgb(image: Image.Image) -> Image.Image:
    """Any picture, decoded, as one of mode RGB that needs no turning; a second call changes nothing.

    Turned as its EXIF orientation says; its ICC profile's colours are converted to sRGB; transparency is laid on white;
    grey, palette and CMYK are converted; 16-bit grey is scaled to 8 bits. Of an animation it is the frame that the image
    stands at, the first of a file.
    Raises UnusableImage of the kind "not RGB" for modes without a plain meaning in RGB (32 bits a channel, CIELAB).
    """
    profile = image.info.get("icc_profile")
    turn = UPRIGHT.get(orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode in DEEP_MODES or (image.mode == "I" and image.format == "PNG"):  # which PNG's grey is in older Pillows
        image = _eight_bits(image)
    if image.mode not in OPAQUE_MODES + ALPHA_MODES:
        raise UnusableImage("not RGB", f"the mode is {image.mode}")
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        alpha = image.convert("RGBA").getchannel("A")
        image = to_srgb(image, profile)
        image.putalpha(alpha)
        image, profile = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image), None
    image = to_srgb(image, profile)  # a copy, even of RGB
    image.info.clear()  # the orientation among it has been seen to
    return image


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 5 and above lie on their side."""
    # Not ImageOps.exif_transpose: that also writes the other EXIF fields anew, which fails on odd ones.
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except DAMAGE:  # the pixels are whole, and nobody knows of a turn
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit grey picture, scaled to mode L, or LA where one grey stands for transparency."""
    deep = np.asarray(image).astype(np.float64)
    grey = Image.fromarray((deep / 257).round().clip(0, 255).astype(np.uint8))
    clear = image.info.get("transparency")
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(deep == clear, 0, 255).astype(np.uint8)))
    return grey


def to_u8(image: Image.Image) -> Tensor:
    """A picture of mode RGB -> uint8 [3, H, W] in [0, 255]."""
    # Band by band is half the time of turning [H, W, 3] round.
    return torch.from_numpy(np.stack([np.asarray(band) for band in image.split()]))


def from_u8(image_u8: Tensor) -> Image.Image:
    """uint8 [3, H, W] -> a picture of mode RGB."""
    return Image.fromarray(image_u8.permute(1, 2, 0).contiguous().cpu().numpy())


def square(image: Image.Image, side: int, fit: Fit) -> Image.Image:
    """An RGB picture of any shape as side x side pixels (LANCZOS).

    crop: its centre square. stretch: all of it, out of shape. pad: all of it, in shape, in the middle; the margins are
    its own mirror image, since a plain colour would be taken for a part of the scene.
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
    """Width and height of the picture within a square that it is padded to: the longer is `side`."""
    longer = max(size)
    return max(1, round(size[0] * side / longer)), max(1, round(size[1] * side / longer))


def _padded_box(size: Size, side: int) -> tuple[int, int, int, int]:
    width, height = padded_size(size, side)
    left, top = (side - width) // 2, (side - height) // 2
    return left, top, left + width, top + height


def restored(result: Image.Image, size: Size, fit: Fit, to: Restore) -> Image.Image:
    """Undo `square`: the result of a content picture of `size`, in that picture's shape.

    Args:
        result: side x side pixels.
        to: "aspect" keeps the model's resolution: under crop the square as it is, under pad what is left when the
            margins are cut off, under stretch a picture of `size`'s aspect ratio with as many pixels as the square.
            "size" enlarges (or shrinks) that to `size`, under crop to a square of its shorter side; never to more than
            64 megapixels. "square" is what the model drew.
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
    """`size` shrunk in shape to about so many pixels if it has more, or with `enlarge` in any case."""
    factor = (pixels / (size[0] * size[1])) ** 0.5
    if factor >= 1 and not enlarge:
        return size
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
