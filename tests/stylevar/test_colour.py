"""ICC profiles: pictures are read in the colours that their profile gives them."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from icc_profiles import (
    ADOBE_RGB,
    D50,
    DISPLAY_P3,
    PROPHOTO,
    SRGB,
    described,
    fixed,
    gamma_curve,
    grey_profile,
    icc,
    matrix_profile,
    point,
    table_curve,
    to_d50,
    xyz,
)
from PIL import Image, ImageCms

from stylevar.pictures import upright_rgb


def linear(value: np.ndarray) -> np.ndarray:
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def srgb_u8(light: np.ndarray) -> np.ndarray:
    """Linear sRGB, [..., 3] -> levels 0 to 255."""
    light = np.clip(light, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


SRGB_CURVE = table_curve(linear(np.linspace(0, 1, 1024)))
PROFILES = {
    "Display P3": (DISPLAY_P3, SRGB_CURVE, linear),
    "Adobe RGB": (ADOBE_RGB, gamma_curve(563 / 256), lambda v: v ** (563 / 256)),
    "ProPhoto": (PROPHOTO, gamma_curve(461 / 256), lambda v: v ** (461 / 256)),
}
COLOURS = np.array([[(202, 75, 62), (128, 128, 128), (0, 0, 0), (255, 255, 255), (60, 90, 140), (150, 160, 120)]], np.uint8)


def saved(image: Image.Image, profile: bytes, kind: str = "PNG", **options: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, icc_profile=profile, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(upright_rgb(image), dtype=float)


@pytest.mark.parametrize("name", PROFILES)
def test_matrix_profiles_are_converted_to_srgb(name: str) -> None:
    primaries, curve, decode = PROFILES[name]
    light = decode(COLOURS / 255) @ to_d50(primaries).T @ np.linalg.inv(to_d50(SRGB)).T
    found = levels(saved(Image.fromarray(COLOURS), matrix_profile(primaries, curve)))
    assert np.abs(found - srgb_u8(light)).max() <= 2


@pytest.mark.parametrize(
    ("name", "written"), [("Display P3", (202, 75, 62)), ("Adobe RGB", (190, 62, 54)), ("ProPhoto", (153, 75, 45))]
)
def test_one_colour_in_three_spaces(name: str, written: tuple[int, int, int]) -> None:
    primaries, curve, _ = PROFILES[name]
    found = levels(saved(Image.new("RGB", (1, 1), written), matrix_profile(primaries, curve)))[0, 0]
    assert np.abs(found - (220, 60, 50)).max() <= 3  # half a level of what is written is up to a level and a half here


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_every_format_brings_its_profile(kind: str) -> None:
    primaries, curve, _ = PROFILES["ProPhoto"]
    image = Image.new("RGB", (16, 16), (153, 75, 45))
    found = levels(saved(image, matrix_profile(primaries, curve), kind, quality=100))[8, 8]
    assert np.abs(found - (220, 60, 50)).max() <= 4


def test_srgb_pictures_keep_their_bytes() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    for profile in (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), matrix_profile(SRGB, SRGB_CURVE)):
        assert np.array_equal(levels(saved(Image.fromarray(pixels), profile)), pixels)


def test_grey_profiles() -> None:
    ramp = np.arange(0, 256, 15, dtype=np.uint8)[None]
    expected = srgb_u8((ramp / 255) ** 1.8)
    for mode in ("L", "LA"):
        found = levels(saved(Image.fromarray(ramp).convert(mode), grey_profile(1.8)))
        assert np.abs(found - expected[..., None]).max() <= 2


def test_a_grey_picture_with_a_colour_profile() -> None:
    primaries, curve, decode = PROFILES["Adobe RGB"]
    ramp = np.arange(0, 256, 15, dtype=np.uint8)[None]
    found = levels(saved(Image.fromarray(ramp), matrix_profile(primaries, curve)))
    assert np.abs(found - srgb_u8(decode(ramp / 255))[..., None]).max() <= 2


def cmyk_profile() -> bytes:
    """A press that prints light grey at most: K is taken for lightness 100 - 80 K, and other inks are ignored."""
    grid = np.array(np.meshgrid(*[[0.0, 1.0]] * 4, indexing="ij")).reshape(4, -1)
    lightness = 100 - 80 * grid[3]
    lab = np.stack([lightness * 652.8, np.full(16, 0x8000), np.full(16, 0x8000)], axis=1).round().astype(int)
    identity = b"".join(fixed(v) for v in np.eye(3).flatten())
    curves = struct.pack(">HH", 0, 65535)
    table = b"mft2\0\0\0\0" + struct.pack(">BBBx", 4, 3, 2) + identity + struct.pack(">HH", 2, 2) + curves * 4
    table += struct.pack(f">{lab.size}H", *lab.flatten()) + curves * 3
    tags = {b"desc": described(b"press"), b"cprt": b"text\0\0\0\0none\0", b"wtpt": point(xyz(D50)), b"A2B0": table}
    profile = bytearray(icc(b"CMYK", tags))
    profile[12:16], profile[20:24] = b"prtr", b"Lab "
    return bytes(profile)


def test_cmyk_profiles() -> None:
    image = Image.fromarray(np.array([[[0, 0, 0, 0], [0, 0, 0, 128], [255, 0, 0, 0]]], np.uint8), "CMYK")
    white, middle, cyan = levels(saved(image, cmyk_profile(), "TIFF"))[0]
    assert white.min() >= 253
    assert cyan.min() >= 253  # which it is not without the profile
    assert np.ptp(middle) <= 2
    assert 100 < middle[0] < 160


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_transparency_and_palettes(mode: str) -> None:
    primaries, curve, _ = PROFILES["ProPhoto"]
    image = Image.new("RGB", (2, 1), (153, 75, 45))
    if mode == "RGBA":
        image.putalpha(Image.fromarray(np.array([[255, 0]], np.uint8)))
    elif mode == "P":
        image = image.quantize(2)
    found = levels(saved(image, matrix_profile(primaries, curve)))[0]
    assert np.abs(found[0] - (220, 60, 50)).max() <= 2
    if mode == "RGBA":
        assert found[1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("profile", [b"no profile", matrix_profile(ADOBE_RGB, gamma_curve(2.2))[:200], grey_profile(1.8)])
def test_profiles_that_cannot_be_used_are_ignored(profile: bytes) -> None:
    image = Image.fromarray(COLOURS)
    image.info["icc_profile"] = profile
    assert np.array_equal(levels(image), COLOURS)


def test_a_colour_profile_on_cmyk_pixels_is_ignored() -> None:
    image = Image.new("CMYK", (1, 1), (10, 200, 30, 40))
    plain = levels(image)
    image.info["icc_profile"] = matrix_profile(PROPHOTO, gamma_curve(1.8))
    assert np.array_equal(levels(image), plain)


def test_a_second_call_changes_nothing() -> None:
    primaries, curve, _ = PROFILES["Display P3"]
    once = upright_rgb(saved(Image.fromarray(COLOURS), matrix_profile(primaries, curve)))
    assert "icc_profile" not in once.info
    assert upright_rgb(once).tobytes() == once.tobytes()
