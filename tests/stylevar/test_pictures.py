"""Pictures become squares and get their own shape back, whatever they are made of."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from stylevar.pictures import (
    MAX_PIXELS,
    UnusableImage,
    from_u8,
    orientation,
    padded_size,
    restored,
    square,
    to_u8,
    upright_rgb,
)


def reopened(image: Image.Image, kind: str = "PNG", **options) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, np.full_like(across, 90)], axis=2).round().astype(np.uint8))


def gap(first: Image.Image, second: Image.Image) -> float:
    return float(np.abs(np.asarray(first, dtype=float) - np.asarray(second, dtype=float)).mean())


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_turned_picture_is_turned_back_once(turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    image = upright_rgb(reopened(gradient(20, 10), exif=exif))
    assert image.size == ((10, 20) if turn >= 5 else (20, 10))
    assert orientation(image) == 1
    assert upright_rgb(image).tobytes() == image.tobytes()


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    deep = reopened(Image.fromarray(np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)))
    assert np.asarray(upright_rgb(deep))[0].tolist() == [[grey] * 3 for grey in (0, 1, 128, 255)]


def test_sixteen_bit_grey_may_have_a_clear_grey() -> None:
    deep = Image.fromarray(np.array([[0, 1, 65535]], dtype=np.uint16))
    deep.info["transparency"] = 1
    assert np.asarray(upright_rgb(deep))[0, :, 0].tolist() == [0, 255, 255]


def test_sixteen_bit_colour_is_scaled(tmp_path) -> None:
    assert np.asarray(upright_rgb(Image.open(io.BytesIO(DEEP_RGB))))[0, 0].tolist() == [255, 128, 0]


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_modes_without_meaning_in_rgb_are_refused(mode: str) -> None:
    with pytest.raises(UnusableImage, match=f"not RGB: the mode is {mode}"):
        upright_rgb(Image.new(mode, (4, 4)))


def test_an_animation_gives_the_frame_it_stands_at() -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    film = reopened(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert upright_rgb(film).getpixel((3, 3)) == (255, 0, 0)


def test_tensors_and_back() -> None:
    image = gradient(5, 3)
    assert to_u8(image).shape == (3, 3, 5)
    assert from_u8(to_u8(image)).tobytes() == image.tobytes()


@pytest.mark.parametrize("fit", ["pad", "stretch"])
@pytest.mark.parametrize("size", [(96, 64), (64, 96), (80, 80), (200, 31)])
def test_all_of_the_picture_comes_back(fit, size) -> None:
    picture = gradient(*size)
    inside = square(picture, 64, fit)
    assert inside.size == (64, 64)
    assert gap(restored(inside, size, fit, "size"), picture) < 4


def test_crop_gives_the_centre_square_back() -> None:
    picture = gradient(96, 64)
    inside = square(picture, 32, "crop")
    assert restored(inside, (96, 64), "crop", "aspect") is inside
    assert gap(restored(inside, (96, 64), "crop", "size"), picture.crop((16, 0, 80, 64))) < 4


@pytest.mark.parametrize(("fit", "size"), [("crop", (64, 64)), ("pad", (64, 32)), ("stretch", (91, 45))])
def test_aspect_keeps_the_models_resolution(fit, size) -> None:
    assert restored(Image.new("RGB", (64, 64)), (1000, 500), fit, "aspect").size == size
    assert restored(Image.new("RGB", (64, 64)), (1000, 500), fit, "square").size == (64, 64)


def test_margins_mirror_the_picture() -> None:
    picture = square(gradient(64, 32), 64, "pad")
    rows = np.asarray(picture)
    assert padded_size((64, 32), 64) == (64, 32)
    assert np.array_equal(rows[15], rows[16])
    assert np.array_equal(rows[48:], rows[32:48][::-1])


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 1)])
def test_a_pixel_is_enough(fit, size) -> None:
    inside = square(Image.new("RGB", size, (10, 20, 30)), 16, fit)
    assert torch.unique(to_u8(inside).flatten(1), dim=1).flatten().tolist() == [10, 20, 30]
    assert restored(inside, size, fit, "size").size == ((1, 1) if fit == "crop" else size)
    assert min(restored(inside, size, fit, "aspect").size) >= 1


def test_vast_pictures_give_results_of_a_bounded_size() -> None:
    width, height = restored(Image.new("RGB", (8, 8)), (40_000, 20_000), "stretch", "size").size
    assert width * height == pytest.approx(MAX_PIXELS, rel=0.001)
    assert width / height == pytest.approx(2, rel=0.001)


def _deep_rgb() -> bytes:
    """A PNG of one pixel of 16 bits a channel, which Pillow reads and does not write."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + struct.pack(">HHH", 65535, 128 * 257, 0))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


DEEP_RGB = _deep_rgb()
