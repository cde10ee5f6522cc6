"""Every kind of file that a command reads, damaged in every way that any file can be."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from pathlib import Path

import prepared
import pytest
import tiny
import torch
from campaign import SILENT, damaged_copy, each_damage, keeps_promises, local_worker
from safetensors.torch import load_file, save_file

from launch import export
from launch.export import ReleaseConfig
from stylevar.weight_files import read_file

FORMATS = ("png", "jpg", "webp", "bmp", "tif", "gif")
TRAINERS = ("train_adain", "train_vqvae", "grpo")
ABSENT = ("missing", "a link to itself")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A model in both formats with its VQ-VAE, adapters of it, pictures of every format, tables that name them, a shard."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny.save(folder / "model")
    torch.save({"model": read_file(folder / "model" / "model.safetensors")}, folder / "model" / "model.pth")
    shutil.copytree(folder / "model", folder / "tuned")
    tuned = load_file(folder / "model" / "model.safetensors")
    tuned["blocks.0.attn.proj.weight"] += 0.1
    save_file(tuned, folder / "tuned" / "model.safetensors")
    (folder / "adapters").mkdir()
    export.main(ReleaseConfig(str(folder / "tuned"), folder / "adapters", adapters_of=str(folder / "model"), adapter_rank=1))
    name_base(folder / "adapters", str(folder / "model"))
    (folder / "pictures").mkdir()
    for number, ending in enumerate(FORMATS):
        tiny.picture(number, 40).save(folder / "pictures" / f"content.{ending}")
    tiny.picture(9, 20).save(folder / "pictures" / "style.png")
    (folder / "pictures" / "pairs.csv").write_text("content,style\ncontent.png,style.png\n")
    (folder / "pictures" / "list.txt").write_text("content.png\ncontent.jpg\n")
    (folder / "shards").mkdir()
    tiny.shard(folder / "shards" / "a.tar", 3)
    return folder


def name_base(adapters: Path, base: object, **settings: object) -> None:
    file = adapters / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base} | settings))


def codes(damage: str) -> tuple[int, ...]:
    return (0, 2) if damage in SILENT else (2,)


def stylise(folder: Path, out: Path, **changes: object) -> list[object]:
    """The flags of `infer.py` for the tiny model; `changes` replace values."""
    flags = {
        "init": folder / "model" / "model.safetensors",
        "content": folder / "pictures" / "content.png",
        "style": folder / "pictures" / "style.png",
        "device": "cpu",
        "out": out,
    } | changes
    return [word for name, value in flags.items() if value is not None for word in (f"--{name}", value)]


def test_the_sound_files_are_taken(inputs, tmp_path):
    """Otherwise the refusals below would say nothing."""
    for name in ("model/model.safetensors", "model/model.pth", "adapters"):
        out = tmp_path / Path(name).name
        keeps_promises(inputs, "infer", stylise(inputs, out, init=inputs / name), codes=[0], writes=[out])
    out = tmp_path / "pictures"
    keeps_promises(inputs, "infer", stylise(inputs, out, content=inputs / "pictures"), codes=[0], writes=[out])
    assert len(list(out.glob("content_*__style.png"))) == len(FORMATS)


@pytest.mark.parametrize("damage", each_damage())
@pytest.mark.parametrize("ending", ["png", *(pytest.param(ending, marks=pytest.mark.slow) for ending in FORMATS[1:])])
def test_pictures(inputs, tmp_path, ending, damage):
    file = damaged_copy(inputs / "pictures", tmp_path / "in", f"content.{ending}", damage)
    if damage == "a folder":
        (file / "empty.txt").touch()
    out = tmp_path / "out"
    may = (0, 2) if damage in SILENT or damage.startswith("cut at three") else (2,)
    keeps_promises(tmp_path, "infer", stylise(inputs, out, content=file), [file.name], may, [out])


@pytest.mark.parametrize("damage", each_damage())
@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "vqvae.safetensors", "config.json"])
def test_models(inputs, tmp_path, name, damage):
    """Without its config, or a VQ-VAE beside it, a model asks for the VQ-VAE."""
    file = damaged_copy(inputs / "model", tmp_path / "model", name, damage)
    init = file if name.startswith("model") else file.parent / "model.safetensors"
    out = tmp_path / "out"
    unseen = name == "config.json" and damage in ("missing", "a folder", "a named pipe", "a link to itself")
    may = (0,) if unseen else codes(damage)
    says = "--vae" if name.startswith("vqvae") and damage in ("missing", "a folder", "a named pipe", *ABSENT) else name
    keeps_promises(tmp_path, "infer", stylise(inputs, out, init=init), [says], may, [out])


@pytest.mark.parametrize("damage", each_damage())
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_adapters(inputs, tmp_path, name, damage):
    file = damaged_copy(inputs / "adapters", tmp_path / "adapters", name, damage)
    out = tmp_path / "out"
    # Without its file of settings, the folder is no model at all.
    gone = name == "adapter_config.json" and damage in ("missing", "a folder", "a named pipe", *ABSENT)
    says = "adapters" if gone else name
    keeps_promises(tmp_path, "infer", stylise(inputs, out, init=file.parent), [says], codes(damage), [out])


ADAPTERS: dict[str, tuple[dict[str, object], str]] = {
    "a rank of nothing": ({"r": 0}, "r is 0"),
    "a rank as text": ({"r": "8"}, "r is '8'"),
    "another rank than the weights have": ({"r": 10**12}, "another rank"),
    "an endless scale": ({"lora_alpha": float("inf")}, "not finite"),
    "a scale that is no number": ({"lora_alpha": float("nan")}, "not finite"),
    "a base that is a list": ({"base_model_name_or_path": ["model"]}, "adapters only"),
    "a base without end": ({"base_model_name_or_path": "/dev/zero"}, "/dev/zero"),
    "itself as the base": ({"base_model_name_or_path": "."}, "the base of"),
    "another kind of adapters": ({"use_dora": True}, "use_dora"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_with_other_settings(inputs, tmp_path, name):
    shutil.copytree(inputs / "adapters", tmp_path / "adapters")
    settings, says = ADAPTERS[name]
    name_base(tmp_path / "adapters", **({"base": str(inputs / "model")} | settings))
    words = stylise(inputs, tmp_path / "out", init=tmp_path / "adapters")
    keeps_promises(tmp_path, "infer", words, [says], (2,), [tmp_path / "out"])


@pytest.mark.parametrize("damage", each_damage())
@pytest.mark.parametrize("name", ["pairs.csv", "list.txt"])
def test_tables_of_pictures(inputs, tmp_path, name, damage):
    file = damaged_copy(inputs / "pictures", tmp_path / "in", name, damage)
    out = tmp_path / "out"
    given = {"pairs": file, "content": None, "style": None} if name == "pairs.csv" else {"content": file}
    # Half a table may be a table; a folder stands for its pictures.
    may = (0, 2) if damage.startswith(("cut", "a flipped")) or (name == "list.txt" and damage == "a folder") else (2,)
    says = () if damage.startswith(("a flipped", "cut", "wrong")) else [name]
    keeps_promises(tmp_path, "infer", stylise(inputs, out, **given), says, may, [out])


@pytest.mark.parametrize("damage", each_damage())
def test_shards(inputs, tmp_path, damage):
    file = damaged_copy(inputs / "shards", tmp_path / "in", "a.tar", damage)
    out = tmp_path / "out"
    words = ["--methods", "copy", "--shards", file, "--out", out, "--device", "cpu", "--metric-weights", tmp_path / "in"]
    # The last quarter of a small tar is padding.
    may = (0, 2) if damage in (*SILENT, "cut at three quarters") else (2,)
    keeps_promises(tmp_path, "eval", words, ["a.tar" if damage != "a folder" else "in"], may, [out])


@pytest.mark.parametrize("damage", each_damage(["empty", "a named pipe", "cut at a half", "wrong magic"]))
@pytest.mark.parametrize("program", ["sft", *(pytest.param(p, marks=pytest.mark.slow) for p in TRAINERS)])
def test_shards_of_every_trainer(inputs, tmp_path, monkeypatch, program, damage):
    file = damaged_copy(inputs / "shards", tmp_path / "in", "a.tar", damage)
    out, vae = tmp_path / "out", inputs / "model" / "vqvae.safetensors"
    flags: dict[str, list[object]] = {
        "sft": ["--runs", out, "--vae", vae, *tiny.SHAPE],
        "train_adain": ["--out", out],
        "train_vqvae": ["--out", out, "--heldout", file, "--patch-nums", 1, 2, 3, "--ch", 32, "--ch-mult", 1, 1, 1],
        "grpo": ["--runs", out, "--init", inputs / "model", "--vae", vae, "--heldout", file, "--conditions", 1],
    }
    if program == "grpo":
        local_worker(monkeypatch)
    keeps_promises(tmp_path, program, ["--shards", file, "--device", "cpu", *flags[program]], ["a.tar"], (2,), [out])


@pytest.fixture(scope="module")
def prepared_set(tmp_path_factory) -> Path:
    return prepared.prepare(tmp_path_factory.mktemp("prepared"), count=6)


@pytest.mark.parametrize("damage", each_damage())
def test_manifests(prepared_set, tmp_path, damage):
    file = damaged_copy(prepared_set, tmp_path / "set", "manifest.parquet", damage)
    words = ["check", file.parent, "--workers", 1]
    flipped = damage.startswith("a flipped")  # a Parquet file is read from its end, and its first bytes may be anything
    keeps_promises(tmp_path, "prepare", words, [] if flipped else ["manifest"], (0, 2) if flipped else (2,), [file.parent])


@pytest.mark.parametrize("damage", each_damage())
def test_lists_of_photographs(tmp_path, damage):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "ATTRIBUTION.json").write_text('{"sunset": {"novel": false}}')
    file = damaged_copy(tmp_path / "in", tmp_path / "photos", "ATTRIBUTION.json", damage)
    words = ["demo", "--photos", file.parent, "--out", tmp_path / "out", "--sheet", tmp_path / "out" / "sheet.png"]
    keeps_promises(tmp_path, "prepare", words, ["ATTRIBUTION.json"], (2,), [tmp_path / "out"])


def with_size(ending: str, side: int) -> bytes:
    """A small picture that claims to be `side` pixels wide and high."""
    out = io.BytesIO()
    tiny.picture(1).save(out, {"jpg": "JPEG"}.get(ending, ending.upper()))
    data = bytearray(out.getvalue())
    if ending == "png":
        data[16:24] = struct.pack(">II", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif ending == "bmp":
        data[18:26] = struct.pack("<ii", side, side)
    elif ending == "gif":
        data[6:10] = struct.pack("<HH", side, side)
    else:
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", side, side)
    return bytes(data)


@pytest.mark.parametrize("side", [65_500, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("ending", ["png", "bmp", "gif", "jpg"])
def test_pictures_that_would_unpack_to_gigabytes(inputs, tmp_path, ending, side):
    file = tmp_path / f"bomb.{ending}"
    file.write_bytes(with_size(ending, side))
    words = stylise(inputs, tmp_path / "out", content=file)
    in_small = ending == "jpg" and side == 10_000  # a vast JPEG is decoded at an eighth of its size
    keeps_promises(tmp_path, "infer", words, [file.name], (0, 2) if in_small else (2,), [tmp_path / "out"])


CONFIGS = {
    "no object": ("[1, 2]", "config.json"),
    "nothing": ("null", "config.json"),
    "text for a number": ('{"depth": "deep"}', "depth"),
    "a fraction for a whole number": ('{"depth": 1.5}', "whole number"),
    "more depth than memory": ('{"depth": 1000000}', "depth"),
    "more channels than memory": ('{"ch": 3200000}', "has another size"),
    "NaN": ('{"alphas": [NaN, 0.5, 0.5]}', "alphas"),
    "an unknown key": ('{"dept": 3}', "dept"),
    "one number for a list": ('{"patch_nums": 3}', "config.json"),
    "an endless nest": ("[" * 100_000, "config.json"),
    "a number of ten thousand digits": ('{"depth": ' + "9" * 10_000 + "}", "config.json"),
    "another text encoding": ("\ufeff{}", "config.json"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_of_models_with_other_content(inputs, tmp_path, name):
    shutil.copytree(inputs / "model", tmp_path / "model")
    text, says = CONFIGS[name]
    usual = json.loads((inputs / "model" / "config.json").read_text())
    if text.startswith('{"') and "9999" not in text:
        text = json.dumps(usual | json.loads(text))
    (tmp_path / "model" / "config.json").write_text(text, encoding="utf-8")
    # Another program's config beside the weights is common on the hub: it is left alone, and the VQ-VAE tells the shape.
    foreign = name in ("no object", "nothing")
    words = stylise(inputs, tmp_path / "out", init=tmp_path / "model")
    keeps_promises(tmp_path, "infer", words, [says], (0,) if foreign else (2,), [tmp_path / "out"])
