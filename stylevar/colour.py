"""ICC profiles: convert pictures to sRGB."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""{a profile's colour space: the mode of the pixels that it describes}."""
_DEVICES = ("scnr", "mntr", "prtr", "spac")
"""Profile classes that define the colours of a picture's pixels; the others (links, effects, names) do not."""
_BLACK_POINT_COMPENSATION = 0x2000  # a flag of LittleCMS without a name in older versions of Pillow
_ROUNDING = 2
"""The transform of an sRGB profile may change a channel by up to this many of 255 levels."""


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert a picture of any mode that maps to RGB to mode RGB in sRGB; transparency is dropped.

    A profile that is broken or made for other modes is ignored. So is an sRGB profile, so that its pixels stay exact.
    """
    conversion = _transform(profile) if profile else None
    if conversion is None or not _fits(image.mode, conversion[0]):
        return image.convert("RGB")
    mode, transform = conversion
    converted = ImageCms.applyTransform(image.convert(mode), transform)
    assert converted is not None  # it is None only for in-place transforms
    return converted


def _fits(pixels: str, mode: str) -> bool:
    """Whether a profile for `mode` applies to pixels of mode `pixels`; grey pixels also fit an RGB profile."""
    if "CMYK" in (pixels, mode):
        return pixels == mode
    return mode == "RGB" or pixels in ("1", "L", "LA")


@lru_cache(maxsize=16)
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform] | None:
    """The mode that the profile applies to, and its transform to sRGB; None if no conversion is needed."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _SPACES.get(source.profile.xcolor_space)
        if mode is None or source.profile.device_class not in _DEVICES:
            return None
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            _BLACK_POINT_COMPENSATION,  # type: ignore[arg-type]
        )
    except (OSError, ValueError, ImageCms.PyCMSError):  # ValueError: names in the profile that are no text
        return None
    if mode != "CMYK":
        samples = _samples(mode)
        changed = np.asarray(ImageCms.applyTransform(samples, transform), dtype=np.int16)
        if np.abs(changed - np.asarray(samples.convert("RGB"))).max() <= _ROUNDING:
            return None
    return mode, transform


def _samples(mode: str) -> Image.Image:
    """A picture with a grid of colours from the whole colour space."""
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    if mode == "L":
        return Image.fromarray(levels[None])
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
    return Image.fromarray(grid.reshape(len(levels), -1, 3))
