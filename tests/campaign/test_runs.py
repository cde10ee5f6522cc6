"""Run folders and their files, damaged in every way, resumed, exported and reported."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from campaign import NEEDS_A_USER, SILENT, damaged_copy, each_damage, keeps_promises, local_worker, run
from grpo_files import config as grpo_config
from grpo_files import write_inputs

from data.index import index_triplets
from data.tokens import write_tokens
from launch.rl.colocated import ColocatedWorker
from launch.rl.run import execute
from stylevar.checkpoint import load_tokenizer

FEW = ("missing", "empty", "a named pipe", "unreadable", "cut at a half", "a flipped byte in the header", "wrong magic")
FEW += ("4 GB of nothing",)
STEP = "checkpoints/step_00000002"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def grpo(inputs) -> Path:
    """A finished GRPO run of two steps."""
    settings = grpo_config(inputs, inputs / "runs", steps=2)
    execute(settings, None, ColocatedWorker())
    return settings.runs / "run"


@pytest.fixture(scope="module")
def sft(inputs) -> Path:
    """A finished SFT run of two steps."""
    flags = ["--shards", inputs / "train-0.tar", "--vae", inputs / "sft", "--runs", inputs / "runs", "--device", "cpu"]
    ending = run("sft", *flags, *tiny.SHAPE, "--steps", 2, "--batch", 2, "--ema", 0, "--threads", 1)
    assert ending.code == 0, ending.err
    return inputs / "runs" / "sft"


@pytest.mark.slow  # each row starts a program with a model
@pytest.mark.parametrize("damage", each_damage(FEW, ["cut at a half"]))
@pytest.mark.parametrize("file", ["config.yaml", *(f"{STEP}/{f}" for f in ("worker.json", "optimizer.pt", "progress.json"))])
def test_grpo_runs_that_are_resumed(grpo, tmp_path, monkeypatch, file, damage):
    local_worker(monkeypatch)
    folder = tmp_path / "run"
    damaged_copy(grpo, folder, file, damage)
    keeps_promises(tmp_path, "grpo", ["--resume", folder, "--steps", 3], [Path(file).name], (2,), [folder])
    assert (folder / "model").is_dir()  # what was there is kept


@pytest.mark.parametrize("damage", each_damage(FEW))
@pytest.mark.parametrize("file", ["state.json", "optimizer.pt", "model.safetensors", "config.json"])
def test_sft_runs_that_are_resumed(sft, tmp_path, file, damage):
    folder = tmp_path / "run"
    damaged_copy(sft, folder, f"{STEP}/{file}", damage)
    gone = file == "config.json" and damage in ("missing", "a named pipe")  # the weights and the VQ-VAE tell the shape
    may = (0,) if gone else (2,)
    keeps_promises(tmp_path, "sft", ["--resume", folder, "--steps", 3], [file], may, [folder])


@pytest.mark.parametrize("damage", each_damage())
@pytest.mark.parametrize("file", ["worker.json", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"])
def test_checkpoints_that_are_exported(grpo, tmp_path, file, damage):
    folder = tmp_path / "run"
    damaged_copy(grpo, folder, f"{STEP}/{file}", damage)
    out = tmp_path / "out"
    words = [folder / STEP, "--out", out / "model.pth"]
    may = (0, 2) if damage in SILENT else (2,)
    says = [] if damage in (*SILENT, "missing", "a folder", "a named pipe", "a link to itself") else [Path(file).name]
    keeps_promises(tmp_path, "export", words, says, may, [out])


REPORTED = {
    "config.yaml": "config.yaml",
    "heldout/heldout_00000002.json": "heldout_00000002.json",
    "trajectories": "steps_",
    "tensorboard": "events.out",
}


@pytest.mark.slow  # a report draws its charts even so
@pytest.mark.parametrize("damage", each_damage(FEW))
@pytest.mark.parametrize("file", REPORTED)
def test_runs_that_are_reported(grpo, tmp_path, file, damage):
    """A report leaves out what is damaged, and notes it."""
    inside = grpo / file
    name = file if inside.is_file() else f"{file}/{sorted(path.name for path in inside.iterdir())[0]}"
    folder = tmp_path / "run"
    damaged_copy(grpo, folder, name, damage)
    ending = keeps_promises(tmp_path, "report", [folder], [REPORTED[file]], (0, 2), [folder / "report.html"])
    if ending.code == 0 and damage not in (*SILENT, "missing", "a flipped byte in the header"):
        assert REPORTED[file] in ending.err or file == "tensorboard"


@pytest.mark.parametrize("report", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_runs_that_were_moved(inputs, tmp_path, monkeypatch, report):
    """A run whose folder and whose folder's folder have other names is resumed, exported and reported."""
    local_worker(monkeypatch)
    execute(grpo_config(inputs, tmp_path / "runs"), None, ColocatedWorker())
    folder = (tmp_path / "runs").rename(tmp_path / "moved") / "run"
    folder = folder.rename(folder.with_name("renamed"))
    assert list((folder / "merges").iterdir())
    words = ["--out", tmp_path / "model.pth"]
    assert run("export", folder / "checkpoints" / "latest", *words).code == 0
    ending = run("report", folder) if report else run("grpo", "--resume", folder, "--steps", 10)
    assert ending.code == 0, ending.err
    assert not (tmp_path / "runs").exists()
    if not report:
        assert yaml.safe_load((folder / "config.yaml").read_text())["name"] == "renamed"
        assert (folder / "checkpoints" / "step_00000010").is_dir()


RECORDS = {
    "a step that is text": ("progress.json", {"steps": "two"}),
    "no controller": ("progress.json", {"controller": {"strange": 1}}),
    "a version of one number": ("worker.json", {"version": [1]}),
    "a base outside the run": ("worker.json", {"base": "../../../elsewhere"}),
    "a base that was never merged": ("worker.json", {"base": "merges/merge_0007"}),
    "no fingerprint": ("worker.json", {"fingerprint": None}),
}


LATE = ("a step that is text", "no controller", "no fingerprint")
"""They are found only when everything else is loaded."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LATE else ()) for n in RECORDS])
def test_records_with_other_content(grpo, tmp_path, monkeypatch, name):
    local_worker(monkeypatch)
    folder = tmp_path / "run"
    shutil.copytree(grpo, folder, symlinks=True)
    file, changes = RECORDS[name]
    path = folder / STEP / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    keeps_promises(tmp_path, "grpo", ["--resume", folder, "--steps", 3], [], (2,), [folder])


SETTINGS = {
    "a fraction of a step": ({"steps": 1.5}, "whole number"),
    "steps in words": ({"steps": "many"}, "steps"),
    "no steps": ({"steps": 0}, "steps"),
    "more than all numbers": ({"steps": float("inf")}, "steps"),
    "a number for a path": ({"init": 5}, "init"),
    "numbers for shards": ({"shards": [5]}, "shards"),
    "a word for a switch": ({"tf32": "maybe"}, "tf32"),
    "an unknown device": ({"device": "tpu"}, "device"),
    "an unknown key": ({"stepz": 3}, "stepz"),
    "a list for a group": ({"learner": [1]}, "config.yaml"),
    "a wrong value within a group": ({"learner": {"lr": -1}}, "lr"),
    "a name with a folder": ({"name": "../elsewhere"}, "name"),
    "of another kind of run": ({"kind": "sft"}, "sft"),
    "of a later version": ({"kind": "distillation"}, "distillation"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_with_other_content(grpo, tmp_path, name):
    changes, says = SETTINGS[name]
    folder = tmp_path / "run"
    shutil.copytree(grpo, folder, symlinks=True)
    kept = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(kept | changes))
    keeps_promises(tmp_path, "grpo", ["--config", folder / "config.yaml", "--name", "new", "--runs", tmp_path], [says])


YAML = {
    "aliases that stand for gigabytes": "a: &a [x, x]\n"
    + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnopqrst")),
    "an object of Python": "!!python/object/apply:os.mkdir [planted]\n",
    "an endless nest": "[" * 20_000,
    "binary": "\x00\x01",
    "a list": "- 1\n- 2\n",
    "nothing": "",
    "two documents": "a: 1\n---\nb: 2\n",
}


@pytest.mark.parametrize("name", YAML)
def test_settings_that_are_no_settings(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(YAML[name])
    keeps_promises(tmp_path, "grpo", ["--config", tmp_path / "config.yaml", "--name", "new"], ["config.yaml"])


@pytest.mark.parametrize("program", ["grpo", "export", "report", "infer"])
def test_folders_that_hold_no_run(tmp_path, program):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    words = {
        "grpo": ["--resume", tmp_path / "run"],
        "export": [tmp_path / "run", "--out", tmp_path / "out.pth"],
        "report": [tmp_path / "run"],
        "infer": ["--init", tmp_path / "run", "--out", tmp_path / "out"],
    }
    keeps_promises(tmp_path, program, words[program], ["run"], (2,), [tmp_path / "out"])


@pytest.mark.parametrize("content", ["../../elsewhere", "", "/etc", "a/b", "\x00", "step_00000009"])
def test_links_that_are_files(grpo, tmp_path, content):
    """Where there are no symbolic links, `latest` is a file with the name of a checkpoint."""
    folder = tmp_path / "run"
    shutil.copytree(grpo, folder, symlinks=True)
    latest = folder / "checkpoints" / "latest"
    latest.unlink()
    latest.write_text(content)
    words = [latest, "--out", tmp_path / "out.pth"]
    keeps_promises(tmp_path, "export", words, ["latest"])


@NEEDS_A_USER
@pytest.mark.parametrize("program", ["grpo", "sft"])
def test_a_folder_that_cannot_be_written(grpo, sft, tmp_path, monkeypatch, program):
    local_worker(monkeypatch)
    folder = tmp_path / "run"
    shutil.copytree(grpo if program == "grpo" else sft, folder, symlinks=True)
    folder.chmod(0o500)
    try:
        keeps_promises(tmp_path, program, ["--resume", folder, "--steps", 3], ["not writable"], (2,), [folder / ".lock"])
    finally:
        folder.chmod(0o700)


@pytest.mark.slow  # the training builds its networks before it reads the state
@pytest.mark.parametrize("damage", ["missing", "empty", "a named pipe", "wrong magic"])
def test_states_of_the_tokenizers_training(tmp_path, inputs, damage):
    out = tmp_path / "out"
    out.mkdir()
    (out / "state.pt").write_bytes(b"PK\x03\x04" + bytes(200))
    damaged = damaged_copy(out, tmp_path / "again", "state.pt", damage)
    shape = ["--patch-nums", 1, 2, 3, "--V", 32, "--Cvae", 8, "--ch", 32, "--ch-mult", 1, 1, 1]
    words = ["--shards", inputs / "train-0.tar", "--heldout", inputs / "heldout-0.tar", "--out", damaged.parent, "--resume"]
    keeps_promises(tmp_path, "train_vqvae", [*words, *shape, "--device", "cpu"], ["state.pt"])


@pytest.mark.slow  # each row starts a program with a model
@pytest.mark.parametrize("damage", each_damage(FEW))
@pytest.mark.parametrize("flag", ["--adain-decoder", "--adain-vgg"])
def test_weights_of_adain(tmp_path, inputs, flag, damage):
    (tmp_path / "in").mkdir()
    shutil.copy("data/demo/weights/adain_lite.safetensors", tmp_path / "in" / "decoder.safetensors")
    shutil.copy(inputs / "sft" / "vqvae.safetensors", tmp_path / "in" / "vgg.safetensors")
    name = "decoder.safetensors" if flag == "--adain-decoder" else "vgg.safetensors"
    file = damaged_copy(tmp_path / "in", tmp_path / "weights", name, damage)
    out = tmp_path / "out"
    more = [] if flag == "--adain-decoder" else ["--adain-decoder", "data/demo/weights/adain_lite.safetensors"]
    words = ["--methods", "adain", flag, file, *more, "--shards", inputs / "heldout-0.tar", "--device", "cpu", "--out", out]
    keeps_promises(tmp_path, "eval", words, [name], (2,), [out])


@pytest.mark.parametrize("damage", each_damage(FEW))
def test_weights_of_rewards(tmp_path, inputs, damage):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "vgg19-dcbb9e9d.pth").write_bytes(b"PK\x03\x04" + bytes(200))
    file = damaged_copy(tmp_path / "in", tmp_path / "weights", "vgg19-dcbb9e9d.pth", damage)
    out = tmp_path / "out"
    words = ["--methods", "copy", "--reward", "style=1", "--metric-weights", file.parent, "--out", out]
    words += ["--shards", inputs / "heldout-0.tar", "--device", "cpu"]
    keeps_promises(tmp_path, "eval", words, [file.name], (2,), [out])


@pytest.mark.slow  # each row starts a program with a model
@pytest.mark.parametrize("damage", each_damage(FEW, ["cut at a half"]))
def test_tokens_beside_shards(grpo, inputs, tmp_path, monkeypatch, damage):
    local_worker(monkeypatch)
    with_tokens(tmp_path / "sound", inputs, 0)
    file = damaged_copy(tmp_path / "sound", tmp_path / "in", "a.tokens.safetensors", damage)
    unseen = damage in ("missing", "a named pipe")  # without a file of tokens they are computed
    says = [] if unseen else ["a.tokens.safetensors"]
    words = short_run(inputs, file.parent, tmp_path / "runs")
    keeps_promises(tmp_path, "grpo", words, says, (0,) if unseen else (2,), [tmp_path / "runs"])


STRANGE = [(-1, tiny.LENGTH), (0, tiny.LENGTH + 1)]


@pytest.mark.parametrize(
    ("token", "length"), [(32, tiny.LENGTH), *(pytest.param(*strange, marks=pytest.mark.slow) for strange in STRANGE)]
)
def test_tokens_that_the_model_does_not_have(inputs, tmp_path, monkeypatch, token, length):
    local_worker(monkeypatch)
    with_tokens(tmp_path / "in", inputs, token, length)
    words = short_run(inputs, tmp_path / "in", tmp_path / "runs")
    keeps_promises(tmp_path, "grpo", words, ["tokens", "tokenize"], (2,), [tmp_path / "runs"])


def with_tokens(folder: Path, inputs: Path, token: int, length: int = tiny.LENGTH) -> None:
    """A shard of three triplets, all of whose tokens are `token`."""
    folder.mkdir()
    shard = tiny.shard(folder / "a.tar", 3)
    offsets = torch.from_numpy(np.sort(index_triplets([shard]).places[:, 0, 0]))
    vae = load_tokenizer(str(inputs / "sft"), (1, 2, 3)).fingerprint()
    write_tokens(shard, offsets, torch.full((3, 3, length), token), vae)


def short_run(inputs: Path, shards: Path, runs: Path) -> list[object]:
    """The flags of a GRPO run of one step."""
    words: list[object] = ["--shards", shards, "--heldout", inputs / "heldout-0.tar", "--runs", runs, "--name", "run"]
    words += ["--init", inputs / "sft", "--vae", inputs / "sft", "--novel", "--device", "cpu", "--threads", 1]
    words += ["--steps", 1, "--conditions", 1, "--group", 2, "--lora-rank", 2, "--eval-conditions", 1, "--eval-group", 1]
    return [*words, "--credit", "trajectory", "--reward", "lite"]
