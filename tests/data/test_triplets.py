"""Pictures from users' files: converted as a person would expect, or refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from data import triplets
from data.triplets import UnusableImage, decode_u8, load_image_u8, load_photo, load_rgb
from stylevar.errors import UserError
from stylevar.pictures import to_u8


def test_centre_square_is_resized(tmp_path: Path) -> None:
    image = Image.new("RGB", (60, 20), "red")
    image.paste("blue", (20, 0, 40, 20))
    image.save(tmp_path / "wide.png")
    loaded = load_image_u8(tmp_path / "wide.png", 8)
    assert loaded.dtype == torch.uint8
    assert loaded.shape == (3, 8, 8)
    assert loaded[:, 4, 4].tolist() == [0, 0, 255]


@pytest.mark.parametrize(("mode", "colour"), [("L", 255), ("1", 1), ("P", 0), ("CMYK", (0, 0, 0, 0))])
def test_opaque_modes_are_converted(tmp_path: Path, mode: str, colour: int | tuple[int, ...]) -> None:
    image = Image.new(mode, (8, 8), colour)
    if mode == "P":
        image.putpalette([255, 255, 255])
    path = tmp_path / ("white.jpg" if mode == "CMYK" else "white.png")
    image.save(path)
    assert load_image_u8(path, 8).min() >= 250


@pytest.mark.parametrize(("mode", "clear"), [("RGBA", (0, 0, 0, 0)), ("LA", (0, 0)), ("P", 0), ("RGB", (0, 0, 0))])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str, clear: int | tuple[int, ...]) -> None:
    image = Image.new(mode, (8, 8), clear)
    if mode in ("P", "RGB"):  # One colour stands for "clear", instead of a channel.
        image.info["transparency"] = clear
    image.save(tmp_path / "clear.png")
    assert load_image_u8(tmp_path / "clear.png", 8).min() == 255


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "turned.jpg", exif=exif)
    assert load_rgb(tmp_path / "turned.jpg").size == (10, 20)


def test_unusable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png does not exist"):
        load_image_u8(tmp_path / "gone.png", 8)
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(UserError, match=r"text\.png cannot be used \(unreadable image: it is not a picture"):
        load_image_u8(tmp_path / "text.png", 8)
    Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    with pytest.raises(UserError, match=r"half\.jpg .*truncated"):
        load_image_u8(tmp_path / "half.jpg", 8)
    Image.new("F", (8, 8)).save(tmp_path / "deep.tif")
    with pytest.raises(UserError, match=r"deep\.tif cannot be used \(not RGB: the mode is F\): give an 8-bit RGB"):
        load_image_u8(tmp_path / "deep.tif", 8)


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert load_image_u8(tmp_path / "film.gif", 8)[:, 4, 4].tolist() == [255, 0, 0]


def test_large_pictures_are_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triplets, "MAX_PIXELS", 1_000_000)
    Image.new("1", (1001, 1000)).save(tmp_path / "vast.png")
    with pytest.raises(UserError, match="too large: 1001x1000 is over 1 megapixels"):
        load_image_u8(tmp_path / "vast.png", 8)
    with pytest.raises(UnusableImage) as caught:
        decode_u8((tmp_path / "vast.png").read_bytes())
    assert caught.value.kind == "too large"


def test_a_jpeg_is_decoded_no_larger_than_needed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.linear_gradient("L").resize((800, 400)).save(tmp_path / "turned.jpg", exif=exif)
    photo = load_photo(tmp_path / "turned.jpg", short_side=100)
    assert photo.size == (400, 800)
    assert photo.image.size == (100, 200)
    whole = load_rgb(tmp_path / "turned.jpg").resize((100, 200), Image.Resampling.BOX)
    assert to_u8(photo.image).float().sub(to_u8(whole)).abs().mean() < 2
    assert load_photo(tmp_path / "turned.jpg", short_side=300).image.size == (400, 800)


def test_a_vast_jpeg_is_read_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triplets, "MAX_PIXELS", 100_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150_000)  # Pillow refuses twice as many before it gives a size
    for name, options in {"plain": {}, "progressive": {"progressive": True}}.items():
        Image.new("L", (800, 800), 100).save(tmp_path / f"{name}.jpg", **options)
    photo = load_photo(tmp_path / "plain.jpg", short_side=100)
    assert (photo.image.size, photo.size, photo.image.getpixel((5, 5))) == ((100, 100), (800, 800), (100, 100, 100))
    for path, short_side in (("plain.jpg", None), ("plain.jpg", 700), ("progressive.jpg", 100)):
        with pytest.raises(UserError, match="too large"):
            load_photo(tmp_path / path, short_side)
