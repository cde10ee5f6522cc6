"""Pictures are resized once, squarely, and named after their bytes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from icc_profiles import PROPHOTO, gamma_curve, matrix_profile
from PIL import Image

from data.convert.config import PictureConfig
from data.convert.picture import prepare_picture
from data.convert.source import identity
from data.triplets import UnusableImage, decode_u8


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def thirds() -> bytes:
    """90x30: red, green, blue, each a third."""
    return png(Image.fromarray(np.repeat(np.eye(3, dtype=np.uint8) * 255, 30, axis=0)[None].repeat(30, axis=0)))


def test_crop_takes_the_centre_and_stretch_takes_all():
    crop = prepare_picture(thirds(), PictureConfig(size=32))
    stretch = prepare_picture(thirds(), PictureConfig(size=32, fit="stretch"))
    assert decode_u8(crop.jpeg).shape == (3, 32, 32)
    assert decode_u8(crop.jpeg)[:, 16, 16].tolist() == pytest.approx([0, 255, 0], abs=8)
    assert decode_u8(crop.jpeg)[0].max() < 128
    assert decode_u8(stretch.jpeg)[:, 16, 3].tolist() == pytest.approx([255, 0, 0], abs=8)
    assert crop.id == stretch.id == identity(thirds())


def test_a_bomb_and_a_cut_picture_are_refused():
    with pytest.raises(UnusableImage, match="too large"):
        prepare_picture(png(Image.new("1", (20_000, 20_000))), PictureConfig())
    with pytest.raises(UnusableImage, match="unreadable"):
        prepare_picture(thirds()[:100], PictureConfig())


def test_a_colour_profile_is_converted_and_not_passed_on():
    out = io.BytesIO()
    Image.new("RGB", (32, 32), (153, 75, 45)).save(out, "PNG", icc_profile=matrix_profile(PROPHOTO, gamma_curve(1.8)))
    jpeg = prepare_picture(out.getvalue(), PictureConfig(size=32)).jpeg
    assert decode_u8(jpeg)[:, 16, 16].tolist() == pytest.approx([220, 60, 50], abs=5)
    assert "icc_profile" not in Image.open(io.BytesIO(jpeg)).info
