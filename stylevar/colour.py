"""ICC profiles: pictures in the colours of a camera, screen or press, as sRGB."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Mode of the pixels that a profile of each colour space describes."""
_DEVICES = ("scnr", "mntr", "prtr", "spac")
"""Classes of profiles that say what a picture's own numbers mean; the others (links, effects, names) do not."""
_BLACK_POINT_COMPENSATION = 0x2000  # a flag of LittleCMS that older Pillows have no name for
_ROUNDING = 2
"""Levels of 255 by which an sRGB profile's transform may differ from doing nothing."""


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """A picture of any mode with a plain meaning in RGB -> mode RGB, in sRGB; transparency is dropped.

    A profile that is broken or made for another kind of pixels is ignored, and so is one of sRGB itself, which leaves
    the pixels exactly as they are.
    """
    found = _transform(profile) if profile else None
    if found is None or not _fits(image.mode, found[0]):
        return image.convert("RGB")
    mode, transform = found
    converted = ImageCms.applyTransform(image.convert(mode), transform)
    assert converted is not None  # which it is only if it is done in place
    return converted


def _fits(pixels: str, mode: str) -> bool:
    """Whether pixels of one mode are what a profile for another describes; grey ones are a case of RGB, too."""
    if "CMYK" in (pixels, mode):
        return pixels == mode
    return mode == "RGB" or pixels in ("1", "L", "LA")


@lru_cache(maxsize=16)
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform] | None:
    """The mode that the profile is for, and its transform to sRGB; None if there is nothing to be done."""
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
    except (OSError, ImageCms.PyCMSError):
        return None
    if mode != "CMYK":
        samples = _samples(mode)
        changed = np.asarray(ImageCms.applyTransform(samples, transform), dtype=np.int16)
        if np.abs(changed - np.asarray(samples.convert("RGB"))).max() <= _ROUNDING:
            return None
    return mode, transform


def _samples(mode: str) -> Image.Image:
    """Colours from all over the space, as a picture."""
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    if mode == "L":
        return Image.fromarray(levels[None])
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
    return Image.fromarray(grid.reshape(len(levels), -1, 3))
