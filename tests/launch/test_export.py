"""`launch/export.py`: one file out of runs, checkpoints, merges and plain weights; equal weights, or a refusal."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from checkpoint_files import assert_same, refused
from grpo_files import config as grpo_config
from grpo_files import write_inputs
from program import exit_code
from safetensors.torch import load_file, save_file

from launch import export
from launch.common import cli
from launch.export import ReleaseConfig
from launch.release import files
from launch.rl.colocated import ColocatedWorker
from launch.rl.run import execute
from stylevar.build import build_shapes
from stylevar.checkpoint import load_pair, save_model
from stylevar.config import ModelConfig

KEYS = json.loads((Path(__file__).parents[1] / "golden" / "keys_stylevar_d20.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run that merged, with a checkpoint at its last step."""
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    settings = grpo_config(folder, folder / "runs")
    execute(settings, None, ColocatedWorker())
    assert (settings.runs / "run" / "merges" / "merge_0001").is_dir()
    return settings.runs / "run"


def released(source: Path | str, out: Path, **flags) -> dict[str, torch.Tensor]:
    export.main(ReleaseConfig(str(source), out, **flags))
    return torch.load(out, weights_only=True)["model"] if out.suffix == ".pth" else load_file(out)


def final(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def test_the_released_names_are_the_golden_ones():
    model = build_shapes(ModelConfig())[1]
    assert list(model.state_dict()) == list(KEYS)


def test_a_finished_run_as_pth(run, tmp_path):
    state = released(run, tmp_path / "out.pth")
    expected = final(run)
    assert list(state) == list(tiny.build().state_dict())
    assert_same(state, {name: expected[name] for name in state})
    assert ModelConfig.load(tmp_path / "config.json") == ModelConfig.load(run / "model" / "config.json")


@pytest.mark.parametrize("source", ["", "checkpoints/latest", "checkpoints/step_00000008"])
def test_adapters_of_a_checkpoint_are_baked_into_their_base(run, tmp_path, source):
    """The last checkpoint holds adapters on a merge, and is the policy that became the final model."""
    assert json.loads((run / "checkpoints" / "latest" / "worker.json").read_text())["base"].startswith("merges/")
    state = released(run / source, tmp_path / "out.safetensors", take="latest")
    assert_same(state, final(run))


def test_a_checkpoint_on_the_first_model(run, tmp_path):
    """Before the first merge the base is --init; where that has moved, the flag says so."""
    moved = tmp_path / "moved"
    settings = grpo_config(run.parents[1], tmp_path / "runs", steps=1)
    execute(settings, None, ColocatedWorker())
    shutil.copytree(run.parents[1] / "sft", moved)
    checkpoint = tmp_path / "runs" / "run" / "checkpoints" / "latest"
    expected = released(checkpoint, tmp_path / "a.safetensors")
    text = (checkpoint / "run_config.yaml").read_text()
    (checkpoint / "run_config.yaml").write_text(text.replace(str(run.parents[1] / "sft"), "/gone"))
    with refused("base of", "/gone", "--base"):
        released(checkpoint, tmp_path / "b.safetensors", overwrite=True)
    assert_same(released(checkpoint, tmp_path / "b.safetensors", base=str(moved), overwrite=True), expected)
    assert not torch.equal(
        expected["blocks.0.attn.proj.weight"], load_file(moved / "model.safetensors")["blocks.0.attn.proj.weight"]
    )


def test_a_base_that_is_another_one_now_is_refused(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run", symlinks=True)
    base = json.loads((copy / "checkpoints" / "latest" / "worker.json").read_text())["base"]
    state = load_file(copy / base / "model.safetensors")
    state["head.bias"][0] += 1e-3
    save_file(state, copy / base / "model.safetensors")
    with refused("does not give the weights it was saved from", "base"):
        released(copy, tmp_path / "out.pth", take="latest")
    assert not list(tmp_path.glob("*out*"))


def test_merges_folders_and_files(run, tmp_path):
    """A folder gets the names that every program looks for."""
    merged = run / "merges" / "merge_0001"
    assert_same(released(merged, tmp_path / "out.safetensors"), load_file(merged / "model.safetensors"))
    export.main(ReleaseConfig(str(run / "model" / "model.safetensors"), tmp_path / "folder", with_vae=True))
    names = {path.name for path in (tmp_path / "folder").iterdir()}
    assert names == {"model.safetensors", "config.json", "vqvae.safetensors"}
    load_pair(str(tmp_path / "folder"), str(tmp_path / "folder"))


def test_files_and_folders_of_any_name(run, tmp_path):
    source = tmp_path / "[v1] *.漢"
    shutil.copytree(run / "model", source)
    expected = {name: final(run)[name] for name in tiny.build().state_dict()}
    for number, name in enumerate(("-x.pth", ".x.safetensors", "x" * 251 + ".pth", "\udce9.pth", "[a] b.safetensors")):
        out = tmp_path / str(number) / name
        state = released(source, out)
        assert_same({key: state[key] for key in expected}, expected)
    export.main(ReleaseConfig(str(source), tmp_path / "release-1.0"))
    assert (tmp_path / "release-1.0" / "model.safetensors").is_file()


def test_names_that_cannot_be_written_or_read(run, tmp_path):
    source = tmp_path / "\udce9"
    shutil.copytree(run / "model", source)
    with refused("is not UTF-8", "rename the folder"):
        released(source, tmp_path / "out.pth")
    with refused("is not UTF-8"):
        released(run / "model", tmp_path / "\udce9.safetensors")
    with refused("has 256 bytes"):
        released(run / "model", tmp_path / f"{'x' * 252}.pth")
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_an_sft_run(tmp_path):
    """Its checkpoints are whole models already."""
    sft = tmp_path / "sft"
    states = {}
    for step, name in ((4, "best"), (8, "latest")):
        folder = sft / "checkpoints" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        model = tiny.build(seed=step)
        states[name] = model.state_dict()
        save_model(states[name], model.arch, folder)
        (sft / "checkpoints" / name).symlink_to(folder.name)
    (sft / "config.yaml").write_text(yaml.safe_dump({"epochs": 1, "vae": "elsewhere"}))
    for name, state in states.items():
        assert_same(released(sft, tmp_path / f"{name}.pth", take=name, overwrite=True), state)
    with refused("no finished model yet", "checkpoints/latest or .*checkpoints/best"):
        released(sft, tmp_path / "final.pth", overwrite=True)


def test_a_plain_file_needs_its_vqvae_for_a_config(run, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    torch.save({"model": final(run)}, alone / "released.pth")
    with refused("^vae=None", "no config.json beside it"):
        released(alone / "released.pth", tmp_path / "out.pth")
    vae = str(run.parents[1] / "sft" / "vqvae.safetensors")
    state = released(alone / "released.pth", tmp_path / "out.pth", vae=vae, alphas=(0.1, 0.2, 0.3))
    assert ModelConfig.load(tmp_path / "config.json").alphas == (0.1, 0.2, 0.3)
    assert_same(state, {name: final(run)[name] for name in state})


@pytest.mark.parametrize(("dtype", "error"), [("fp16", 2**-11), ("bf16", 2**-8)])
def test_smaller_types(run, tmp_path, dtype, error):
    """Matrices are rounded, vectors and counts are not, and the model loads as ever."""
    state, full = released(run, tmp_path / "out.safetensors", dtype=dtype), final(run)
    for name, value in full.items():
        small = value.is_floating_point() and value.ndim >= 2
        assert state[name].dtype == (files.DTYPES[dtype] if small else value.dtype)
        torch.testing.assert_close(state[name].to(value.dtype), value, rtol=error, atol=1e-7 if small else 0)
    load_pair(str(tmp_path / "out.safetensors"), str(run.parents[1] / "sft"))


def test_values_that_cannot_be_stored_or_used(tmp_path):
    model = tiny.build()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for folder, value in (("large", 1e6), ("odd", float("nan"))):
        (tmp_path / folder).mkdir()
        state["head.weight"][0, 0] = value
        save_model(state, model.arch, tmp_path / folder)
    with refused("--dtype fp16", "head.weight", "bf16"):
        released(tmp_path / "large", tmp_path / "out.pth", dtype="fp16")
    with refused("head.weight", "not finite"):
        released(tmp_path / "odd", tmp_path / "out.pth")


def test_nothing_is_replaced_unasked(run, tmp_path):
    before = released(run, tmp_path / "out.pth")
    with refused("out.pth exists", "--overwrite"):
        released(run / "merges" / "merge_0001", tmp_path / "out.pth")
    assert_same(torch.load(tmp_path / "out.pth", weights_only=True)["model"], before)
    released(run, tmp_path / "other.pth")  # the config that is there is its own
    config = ModelConfig.load(tmp_path / "config.json")
    with refused("config.json exists", "other alphas"):
        released(run, tmp_path / "third.pth", alphas=tuple(alpha / 2 for alpha in config.alphas))
    assert not (tmp_path / "third.pth").exists()
    assert ModelConfig.load(tmp_path / "config.json") == config
    released(run / "merges" / "merge_0001", tmp_path / "out.pth", overwrite=True)


def test_no_room(run, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
    with refused("0.0 GB free", "make room"):
        released(run, tmp_path / "out.pth")
    assert not list(tmp_path.iterdir())


def test_what_comes_back_otherwise_is_not_kept(run, tmp_path, monkeypatch):
    """A disk that gives other bytes than it was given."""
    monkeypatch.setattr(files, "read_model_state", lambda path: {k: v * 0 for k, v in load_file(path).items()})
    with pytest.raises(RuntimeError, match="with other values than were written"):
        released(run, tmp_path / "out.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN"], "nothing to do: give --out"),
        (["RUN", "--out", "x.zip"], "ends in .pth or .safetensors"),
        (["RUN", "--out", "x.pth", "--private"], "need --push"),
        (["/nowhere/x.pth", "--out", "x.pth"], "/nowhere/x.pth does not exist"),
        (["RUN/checkpoints/latest/adapter", "--out", "x.pth"], "adapters only"),
        (["RUN", "--push", "no-slash"], "owner/name"),
        (["RUN", "--push", "owner/na me"], "not the name of a repository"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    given = [argument.replace("RUN", str(run)) for argument in arguments]
    assert exit_code(monkeypatch, lambda: cli.run(export.main, ReleaseConfig), *given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_former_name_only_tells_the_new_one():
    program = Path(export.__file__).with_name("merge.py")
    done = subprocess.run([sys.executable, str(program), "runs/demo"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: launch/merge.py has been renamed: run launch/export.py, which takes the same flags\n"
