"""`launch/infer.py`: files and folders in, pictures and a grid out."""

from __future__ import annotations

import csv
import dataclasses
import os
import sys
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image

from data.triplets import load_image_u8
from launch import infer
from launch.common import cli
from launch.stylise.config import InferConfig, ModelSource
from launch.stylise.run import Stylist
from stylevar.checkpoint import load_pair
from stylevar.errors import UserError
from stylevar.sampling_config import Sampling


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A model and folders of pictures of several sizes."""
    folder = tmp_path_factory.mktemp("infer")
    tiny.save(folder)
    for name, size in {"content/a.png": 20, "content/b.jpg": 12, "style/x.png": 30, "style/y.png": 12}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        tiny.picture(len(name) + size, size).save(folder / name)
    return folder


def config(files: Path, out: Path, **settings) -> InferConfig:
    """Settings of whatever part they belong to; a single picture or folder need not be in a tuple."""

    def part(kind, **preset):
        names = {field.name for field in dataclasses.fields(kind)}
        return kind(**preset, **{name: settings.pop(name) for name in names & set(settings)})

    model = part(ModelSource, init=str(files / "model.safetensors"), device="cpu")
    sampling = part(Sampling)
    if "pairs" not in settings:
        settings = {"content": files / "content", "style": files / "style"} | settings
    sources = {k: (v,) for k, v in settings.items() if k in ("content", "style") and isinstance(v, Path)}
    return InferConfig(out, **(settings | sources), model=model, sampling=sampling)


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


@pytest.mark.parametrize(
    ("fit", "aspect", "size"),
    [("crop", (12, 12), (16, 16)), ("pad", (12, 5), (40, 16)), ("stretch", (19, 8), (40, 16))],
)
def test_results_have_the_shape_of_their_content(files, tmp_path, fit, aspect, size):
    tiny.picture(1, 40).crop((0, 0, 40, 16)).save(tmp_path / "wide.png")
    for restore, expected in {"aspect": aspect, "size": size, "square": (12, 12)}.items():
        infer.main(config(files, tmp_path / restore, content=tmp_path / "wide.png", fit=fit, restore=restore))
        with Image.open(tmp_path / restore / "wide__x.png") as image:
            assert image.size == expected


def bad_files(folder: Path) -> list[str]:
    """A folder of pictures that cannot be used; their names."""
    folder.mkdir()
    (folder / "broken.png").write_bytes(tiny.png(1)[:40])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("no picture")
    Image.new("F", (4, 4)).save(folder / "deep.tif")
    return sorted(path.name for path in folder.iterdir())


def test_bad_files_do_not_end_the_batch(files, tmp_path, capsys):
    folder = tmp_path / "pictures"
    bad = bad_files(folder)
    tiny.picture(2).save(folder / "fine.png")
    infer.main(config(files, tmp_path / "out", content=folder, batch=1))
    kept = {p.name for p in (tmp_path / "out").iterdir()}
    assert kept == {"fine__x.png", "fine__y.png", "grid.png", "failed.csv"}
    printed = capsys.readouterr()
    assert "2 results" in printed.out
    assert f"4 could not be used (all in {tmp_path / 'out' / 'failed.csv'})" in printed.err
    with (tmp_path / "out" / "failed.csv").open(newline="") as file:
        assert [Path(row["what"]).name for row in csv.DictReader(file)] == bad


def test_only_bad_files_are_one_line(files, tmp_path):
    bad_files(tmp_path / "pictures")
    with pytest.raises(UserError, match=r"^nothing could be stylised: .*broken.png .*\(and 3 more, all in .*failed.csv\)$"):
        infer.main(config(files, tmp_path / "out", content=tmp_path / "pictures"))


def test_a_table_of_pairs(files, tmp_path, capsys):
    table = files / "pairs.csv"
    table.write_text(
        "content,style,name\ncontent/a.png,style/y.png,\ncontent/b.jpg,style/x.png,mine\ngone.png,style/x.png,\n"
    )
    infer.main(config(files, tmp_path / "out", pairs=table))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a__y.png", "mine.png", "grid.png", "failed.csv"}
    assert "line 4" in capsys.readouterr().err


def test_a_table_without_a_usable_line(files, tmp_path):
    (tmp_path / "pairs.csv").write_text("content,style\ngone.png,style/x.png\n")
    with pytest.raises(UserError, match=r"nothing could be stylised: .* line 2: .*gone.png .*does not exist"):
        infer.main(config(files, tmp_path / "out", pairs=tmp_path / "pairs.csv"))


def test_best_of_keeps_the_best_first(files, tmp_path):
    one = {"content": files / "content/a.png", "style": files / "style/x.png"}
    infer.main(config(files, tmp_path / "all", num_samples=4, **one))
    infer.main(config(files, tmp_path / "best", num_samples=2, best_of=4, **one))
    drawn = {pixels(tmp_path / "all" / f"a__x__{i}.png").numpy().tobytes() for i in range(4)}
    assert all(pixels(tmp_path / "best" / f"a__x__{i}.png").numpy().tobytes() in drawn for i in range(2))
    with (tmp_path / "best" / "rewards.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["a__x__0.png", "a__x__1.png"]
    assert float(rows[0]["reward"]) > float(rows[1]["reward"])


def test_ctrl_c_keeps_what_is_finished(files, tmp_path, monkeypatch, capsys):
    work, calls = Stylist.work, []

    def interrupted(self, batch):
        if calls:
            raise KeyboardInterrupt
        calls.append(batch)
        work(self, batch)

    monkeypatch.setattr(Stylist, "work", interrupted)
    with pytest.raises(KeyboardInterrupt):
        infer.main(config(files, tmp_path / "out", batch=1))
    monkeypatch.undo()
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a__x.png", "grid.png"}
    assert "1 result is kept" in capsys.readouterr().err
    first = (tmp_path / "out" / "a__x.png").stat().st_mtime_ns
    infer.main(config(files, tmp_path / "out", skip_existing=True))
    assert len(list((tmp_path / "out").glob("*__*.png"))) == 4
    assert (tmp_path / "out" / "a__x.png").stat().st_mtime_ns == first


def test_nothing_is_left_to_do(files, tmp_path, capsys):
    infer.main(config(files, tmp_path / "out"))
    infer.main(config(files, tmp_path / "out", skip_existing=True))
    assert "4 of 4 pairs already have their results" in capsys.readouterr().out


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
        cli.exit_code(lambda: cli.run(infer.main, InferConfig))
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {flag} {value}")


ODD_NAMES = {
    b"caf\xe9": "caf_",
    b"me [1]{a,b}*": "me [1]{a,b}*",
    b"-x": "-x",
    b"a.b..c": "a.b..c",
    "\u6f22\u5b57".encode(): "\u6f22\u5b57",
    b"x" * 251: None,  # with its ending all that a file system takes
}


def test_any_name_that_a_file_may_have(files, tmp_path):
    folder = tmp_path / os.fsdecode(b"\xe9 [v1]")
    folder.mkdir()
    for name in ODD_NAMES:
        tiny.picture(1).save(folder / os.fsdecode(name + b".png"))
    (folder / os.fsdecode(b"broken\xff.png")).touch()
    infer.main(config(files, folder / "out", content=folder, style=files / "style/x.png"))
    results = {p.name for p in (folder / "out").iterdir()}
    assert {f"{name}__x.png" for name in ODD_NAMES.values() if name} < results
    assert len(results) == len(ODD_NAMES) + 2  # the grid, and failed.csv
    assert "broken\\udcff.png" in (folder / "out" / "failed.csv").read_text(encoding="utf-8")


def test_a_result_of_any_name(files, tmp_path):
    one = {"content": files / "content/a.png", "style": files / "style/x.png", "best_of": 2}
    for name in (b"caf\xe9.png", b"x" * 251 + b".png"):
        folder = tmp_path / str(len(name))
        infer.main(config(files, folder / os.fsdecode(name), **one))
        assert {path.suffix for path in folder.iterdir()} == {".png", ".csv"}
        assert len(list(folder.iterdir())) == 3
    with pytest.raises(UserError, match="the name has 256 bytes"):
        infer.main(config(files, tmp_path / f"{'x' * 252}.png", **one))


def test_pictures_that_are_not_read_are_named_at_the_end(files, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    tiny.picture(1).save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "phone.heic").touch()
    infer.main(config(files, tmp_path / "out", content=tmp_path / "in"))
    assert "phone.heic: .heic files are not supported" in capsys.readouterr().err


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


def test_without_pictures_the_demos_are_taken_each_time_into_a_new_folder(files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bare = InferConfig(model=ModelSource(init=str(files / "model.safetensors"), device="cpu"))
    infer.main(bare)
    said = capsys.readouterr().out
    assert "no pictures are given" in said
    assert "16 results are in runs/infer," in said
    pairs = {path.name for path in Path("runs/infer").glob("*__*.png")}
    assert len(pairs) == 16
    assert "cat__magenta-00.png" in pairs
    first = pixels(Path("runs/infer/cat__magenta-00.png"))
    infer.main(bare)
    assert "runs/infer-2/grid.png" in capsys.readouterr().out
    assert torch.equal(pixels(Path("runs/infer-2/cat__magenta-00.png")), first)
    infer.main(dataclasses.replace(bare, skip_existing=True))
    assert "16 of 16 pairs already have their results" in capsys.readouterr().out
    assert not Path("runs/infer-3").exists()


def test_own_pictures_need_no_out(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    infer.main(dataclasses.replace(config(files, tmp_path), out=None))
    assert {path.name for path in Path("runs/infer").iterdir()} >= {"a__x.png", "grid.png"}


def test_half_of_what_a_pair_needs(files, tmp_path):
    with pytest.raises(UserError, match="--content without --style: give both"):
        InferConfig(content=(files / "content",))
    with pytest.raises(UserError, match="--style without --content: give both"):
        InferConfig(style=(files / "style",))
    with pytest.raises(UserError, match=r"--out .*one\.png: give a folder"):
        infer.main(InferConfig(tmp_path / "one.png"))
    assert not list(tmp_path.iterdir())
