"""`launch/infer.py`: files and folders in, pictures and a grid out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image

from data.triplets import load_image_u8
from launch import cli, infer
from stylevar.checkpoint import load_pair
from stylevar.errors import UserError


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A model and folders of pictures of several sizes."""
    folder = tmp_path_factory.mktemp("infer")
    tiny.save(folder)
    for name, size in {"content/a.png": 20, "content/b.jpg": 12, "style/x.png": 30, "style/y.png": 12}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        tiny.picture(len(name) + size, size).save(folder / name)
    return folder


def config(files: Path, out: Path, **settings) -> infer.InferConfig:
    given = {"content": files / "content", "style": files / "style", "out": out}
    weights = {"init": str(files / "model.safetensors"), "vae": str(files / "vqvae.safetensors"), "device": "cpu"}
    return infer.InferConfig(**{**given, **weights, **settings})


def pixels(path: Path) -> torch.Tensor:
    return load_image_u8(path, tiny.SIZE)


def test_all_pairs_and_a_grid(files, tmp_path, capsys):
    infer.main(config(files, tmp_path / "out"))
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"a__x.png", "a__y.png", "b__x.png", "b__y.png", "grid.png"}
    with Image.open(tmp_path / "out" / "a__x.png") as image:
        assert (image.size, image.mode) == ((tiny.SIZE, tiny.SIZE), "RGB")
    assert "4 results" in capsys.readouterr().out


def test_a_result_does_not_depend_on_the_others(files, tmp_path):
    infer.main(config(files, tmp_path / "all", batch=4))
    infer.main(config(files, tmp_path / "one.png", content=files / "content/b.jpg", style=files / "style/x.png", batch=1))
    assert torch.equal(pixels(tmp_path / "one.png"), pixels(tmp_path / "all" / "b__x.png"))
    assert (tmp_path / "one_grid.png").exists()


def test_seed_and_samples(files, tmp_path):
    one = {"content": files / "content/a.png", "style": files / "style/x.png"}
    infer.main(config(files, tmp_path / "s0", num_samples=2, **one))
    infer.main(config(files, tmp_path / "s1", num_samples=2, seed=1, **one))
    names = ["a__x__0.png", "a__x__1.png"]
    images = [pixels(tmp_path / run / name) for run in ("s0", "s1") for name in names]
    assert len({image.numpy().tobytes() for image in images}) == 4


def test_follows_teacher_forcing_for_greedy_tokens(files, tmp_path):
    one = {"content": files / "content/b.jpg", "style": files / "style/y.png"}
    infer.main(config(files, tmp_path / "greedy.png", top_k=1, **one))
    model = load_pair(str(files / "model.safetensors"), str(files / "vqvae.safetensors"))[1]
    images = (pixels(one[role])[None].float() / 127.5 - 1 for role in ("style", "content"))
    expected = model.autoregressive_infer(1, *images, top_k=1)
    got = pixels(tmp_path / "greedy.png").float() / 255
    assert (got - expected[0]).abs().max() < 1 / 255


def test_fit(files, tmp_path):
    wide = Image.new("RGB", (40, 12), "red")
    wide.paste("blue", (14, 0, 26, 12))
    wide.save(tmp_path / "wide.png")
    crop, stretch = (
        infer.load_pictures({"w": tmp_path / "wide.png"}, tiny.SIZE, fit, [])["w"] for fit in ("crop", "stretch")
    )
    assert crop[0].max() == 0
    assert stretch[0, :, 0].min() > 200


def test_a_bad_file_does_not_end_the_batch(files, tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "broken.png").write_bytes(tiny.png(1)[:40])
    tiny.picture(2).save(folder / "fine.png")
    infer.main(config(files, tmp_path / "out", content=folder))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"fine__x.png", "fine__y.png", "grid.png"}
    assert "broken.png" in capsys.readouterr().err


def test_equal_stems_stay_apart(tmp_path):
    for name in ("cat.png", "cat.jpg", "dog.png", "notes.txt"):
        (tmp_path / name).touch()
    assert list(infer.named_pictures(tmp_path)) == ["cat_jpg", "cat_png", "dog"]


def test_existing_results_are_kept(files, tmp_path):
    out = tmp_path / "out"
    infer.main(config(files, out))
    before = (out / "a__x.png").read_bytes()
    with pytest.raises(UserError, match=r"a__x.png exists.*--overwrite"):
        infer.main(config(files, out, seed=5))
    assert (out / "a__x.png").read_bytes() == before
    infer.main(config(files, out, seed=5, overwrite=True))
    assert (out / "a__x.png").read_bytes() != before


def test_nothing_to_do(files, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="no picture in"):
        infer.main(config(files, tmp_path / "out", content=tmp_path / "empty"))
    with pytest.raises(UserError, match=r"none\.png does not exist"):
        infer.main(config(files, tmp_path / "out", style=tmp_path / "none.png"))
    with pytest.raises(UserError, match=r"nothing could be stylised: .*broken\.png"):
        infer.main(config(files, tmp_path / "out", content=tmp_path / "broken.png"))
    with pytest.raises(UserError, match=r"out\.png: give a folder for 4 results"):
        infer.main(config(files, tmp_path / "out.png"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        infer.main(config(files, tmp_path / "file"))


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--temperature", "0"), ("--style-strength", "2"), ("--top-p", "1.5"), ("--num-samples", "0"), ("--batch", "0")],
)
def test_bad_numbers_are_one_line_and_code_2(flag, value, tmp_path, monkeypatch, capsys):
    argv = ["infer.py", "--content", "a", "--style", "b", "--out", str(tmp_path / "out"), flag, value]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as end:
        cli.exit_code(lambda: cli.run(infer.main, infer.InferConfig))
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {flag} {value}" if flag != "--top-p" else "error: --top-k")


def test_bf16_changes_few_pixels_and_no_file(files, tmp_path):
    for precision in ("fp32", "bf16"):
        infer.main(config(files, tmp_path / precision, precision=precision, top_k=1))
    exact, rounded = (pixels(tmp_path / precision / "a__x.png").float() for precision in ("fp32", "bf16"))
    assert (exact - rounded).abs().mean() < 20


@pytest.mark.slow
def test_a_compiled_model_draws_the_same_pictures(files, tmp_path):
    for compiled in (False, True):
        infer.main(config(files, tmp_path / str(compiled), compile=compiled))
    plain, compiled_result = (pixels(tmp_path / str(compiled) / "a__x.png").float() for compiled in (False, True))
    assert (plain - compiled_result).abs().mean() < 1
