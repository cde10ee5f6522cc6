"""`launch/sft.py` from flags to the trained model, on twelve-pixel triplets."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import tiny
import torch
import yaml
from full_disk import file_size_limit, limit_in
from prepared import prepare
from program import exit_code
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.convert.tokenize import tokenize
from launch import sft
from launch.configs.sft import SftConfig, load_config
from launch.run.run_lock import only_writer
from launch.sft import parse
from launch.supervised import parallel
from launch.supervised.run import SftRun
from launch.supervised.start import starting_model
from learner.supervised.step import SftLearner
from stylevar.checkpoint import load_pair, load_tokenizer
from stylevar.errors import UserError
from stylevar.vqvae import VQVAE

TRAINING = ["--train-bn", "--flip", "--no-augment", "--alpha-jitter", "0.2", "--ema", "0.9", "--warmup", "2"]
TRAINING += ["--batch", "4", "--micro-batch", "3"]
CADENCE = ["--log-every", "1", "--eval-every", "2", "--checkpoint-every", "3", "--image-conditions", "2"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with a tokenizer, ten training and four held-out triplets."""
    folder = tmp_path_factory.mktemp("files")
    tiny.save(folder)
    tiny.shard(folder / "train-0.tar", 6)
    tiny.shard(folder / "train-1.tar", 4, first=6)
    tiny.shard(folder / "val-0.tar", 4, first=50)
    return folder


def flags(files: Path, runs: Path, *more: str) -> list[str]:
    given = ["--shards", str(files / "train-*.tar"), "--val-shards", str(files / "val-*.tar")]
    given += ["--vae", str(files / "vqvae.safetensors"), "--runs", str(runs), "--threads", "1"]
    return [*given, *tiny.SHAPE, *TRAINING, *CADENCE, *more]


def run(*argv: str) -> Path:
    return sft.train(*parse(argv, None))


def main(monkeypatch: pytest.MonkeyPatch, *argv: object) -> int:
    """The program's exit code."""
    return exit_code(monkeypatch, sft.main, *argv)


def stop_after(monkeypatch, steps: int) -> None:
    """Press Ctrl-C in the midst of step number `steps`."""
    step = SftLearner.step

    def pressed(self: SftLearner, micro_batches, lr, seed):
        metrics = step(self, micro_batches, lr, seed)
        if self.updates == steps:
            os.kill(os.getpid(), signal.SIGINT)
        return metrics

    monkeypatch.setattr(SftLearner, "step", pressed)


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def same(a: object, b: object) -> bool:
    """Equal bit for bit, through nested containers of tensors."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run of eight steps."""
    runs = tmp_path_factory.mktemp("finished")
    run(*flags(files, runs, "--name", "whole", "--steps", "8"))
    return runs / "whole"


def test_what_a_run_leaves(files, finished):
    assert sorted(p.name for p in (finished / "checkpoints").iterdir() if not p.is_symlink())[-2:] == [
        "step_00000006",
        "step_00000008",
    ]
    checkpoint = finished / "checkpoints" / "latest"
    assert {p.name for p in checkpoint.iterdir()} == {
        "config.json",
        "model.safetensors",
        "raw.safetensors",
        "optimizer.pt",
        "state.json",
        "sizes.json",
    }
    assert json.loads((checkpoint / "state.json").read_text())["step"] == 8
    model = load_pair(str(finished / "model"), str(files / "vqvae.safetensors"))[1]
    assert model.arch.image_size == tiny.SIZE
    notes = json.loads((finished / "model" / "training.json").read_text())
    assert notes["vae"] == str(files / "vqvae.safetensors")
    for tag in ("loss/train", "lr", "throughput/images_per_s", "time/step"):
        assert [step for step, _ in scalars(finished, tag)] == list(range(1, 9))
    for tag in ("val/loss", "val/top1", "val/top5", "val/last_scale/top1", "val_scales/loss/02"):
        assert [step for step, _ in scalars(finished, tag)] == [2, 3, 4, 6, 8]


def test_the_best_checkpoint_is_exported(finished):
    best = min((loss, step) for step, loss in scalars(finished, "val/loss") if step in (3, 6, 8))
    linked = (finished / "checkpoints" / "best").resolve()
    assert linked.name == f"step_{best[1]:08d}"
    assert same(load_file(linked / "model.safetensors"), load_file(finished / "model" / "model.safetensors"))


def test_stopped_and_resumed_equals_uninterrupted(files, finished, tmp_path, monkeypatch, capsys):
    argv = flags(files, tmp_path, "--name", "cut", "--steps", "8")
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        assert main(patch, *argv) == 130
    assert f"--resume {tmp_path / 'cut'}" in capsys.readouterr().out
    assert (tmp_path / "cut" / "checkpoints" / "latest").resolve().name == "step_00000005"
    assert main(monkeypatch, "--resume", str(tmp_path / "cut")) == 0
    for name in ("model.safetensors", "raw.safetensors"):
        ours, theirs = (load_file(folder / "checkpoints" / "latest" / name) for folder in (tmp_path / "cut", finished))
        assert same(ours, theirs), name
    ours, theirs = (torch.load(f / "checkpoints" / "latest" / "optimizer.pt") for f in (tmp_path / "cut", finished))
    assert same(ours, theirs)
    for tag in ("loss/train", "val/loss", "grad/norm", "lr"):
        assert scalars(tmp_path / "cut", tag) == scalars(finished, tag)


def test_resuming_from_an_earlier_checkpoint_rewinds(files, finished, tmp_path):
    run(*flags(files, tmp_path, "--name", "again", "--steps", "8", "--keep-checkpoints", "9"))
    before = load_file(tmp_path / "again" / "model" / "model.safetensors")
    assert same(before, load_file(finished / "model" / "model.safetensors"))
    run("--resume", str(tmp_path / "again" / "checkpoints" / "step_00000003"))
    assert same(load_file(tmp_path / "again" / "model" / "model.safetensors"), before)


def test_auto_starts_and_then_continues(files, tmp_path):
    argv = flags(files, tmp_path, "--name", "auto", "--resume", "auto")
    run(*argv, "--steps", "2")
    assert load_config(tmp_path / "auto" / "config.yaml").steps == 2
    run(*argv, "--steps", "4")
    assert [step for step, _ in scalars(tmp_path / "auto", "loss/train")] == [1, 2, 3, 4]
    assert load_config(tmp_path / "auto" / "config.yaml").steps == 4


def test_config_survives_its_file(files, finished):
    config, _ = parse(flags(files, finished.parent, "--name", "whole", "--steps", "8"), None)
    assert load_config(finished / "config.yaml") == config


def test_initial_model_and_half_export(files, tmp_path):
    run(*flags(files, tmp_path, "--name", "a", "--steps", "1", "--ema", "0"))
    start = str(tmp_path / "a" / "model")
    config = SftConfig(init=start, vae=str(files / "vqvae.safetensors"), alphas=(0.1, 0.2, 0.3))
    model = starting_model(config)
    assert model.arch.alphas == (0.1, 0.2, 0.3)
    assert same(model.state_dict(), load_file(Path(start) / "model.safetensors"))
    folder = run(*flags(files, tmp_path, "--name", "b", "--steps", "1", "--init", start, "--half", "--export", "last"))
    saved = load_file(folder / "model.safetensors")
    assert saved["head.weight"].dtype == torch.float16
    assert saved["head.bias"].dtype == torch.float32


def test_start_from_a_vanilla_var(files, tmp_path):
    own = tiny.build().state_dict()
    vanilla = {k: v.clone() for k, v in own.items() if "_guide" not in k and "encoder" not in k and "feat_emb" not in k}
    vanilla = {k.replace("_target", ""): v for k, v in vanilla.items()} | {"class_emb.weight": torch.zeros(3, 64)}
    encoder = {f"{child}": v for child, v in resnet(own).items()} | {"fc.weight": torch.zeros(10, 32)}
    torch.save(vanilla, tmp_path / "var.pth")
    torch.save(encoder, tmp_path / "resnet.pth")
    given = {"vae": str(files / "vqvae.safetensors"), "var": str(tmp_path / "var.pth")}
    model = starting_model(SftConfig(**given, image_encoder=str(tmp_path / "resnet.pth")))
    state = model.state_dict()
    assert torch.equal(state["blocks.0.attn.mat_qkv_guide.weight"], own["blocks.0.attn.mat_qkv_target.weight"])
    assert torch.equal(state["content_encoder.0.weight"], own["style_encoder.0.weight"])
    with pytest.raises(UserError, match=r"--var needs --image-encoder.*resnet18.*give its path"):
        starting_model(SftConfig(**given))
    with pytest.raises(UserError, match="is not a vanilla VAR"):
        starting_model(SftConfig(vae=given["vae"], var=str(files / "model.safetensors"), image_encoder="x"))
    with pytest.raises(UserError, match="is not torchvision.s ResNet-18"):
        starting_model(SftConfig(**given, image_encoder=str(tmp_path / "var.pth")))


def resnet(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The style encoder's weights under torchvision's names."""
    children = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    own = {k.removeprefix("style_encoder."): v for k, v in state.items() if k.startswith("style_encoder.")}
    return {f"{children[k.split('.')[0]]}.{k.partition('.')[2]}": v for k, v in own.items()}


def test_triplets_beyond_the_memory_are_read_as_they_come(files, finished, tmp_path):
    run(*flags(files, tmp_path, "--name", "large", "--steps", "2", "--memory-gb", "0"))
    # Rounding may differ in the tokenizer's batches, so the losses are close, not the same.
    ours, theirs = scalars(tmp_path / "large", "loss/train"), scalars(finished, "loss/train")
    assert ours[0][1] == pytest.approx(theirs[0][1], abs=0.1)


BAD = {
    "no shards": (["--shards"], "no training data: give --shards"),
    "missing shard": (["--shards", "{files}/none-*.tar"], "no shard matches"),
    "wrong size": (["--shards", "{files}/large.tar"], "wrong size"),
    "missing tokenizer": (["--vae", "{files}/none.safetensors"], "none.safetensors does not exist"),
    "another tokenizer": (["--V", "64"], "vqvae.safetensors has another size"),
    "two starts": (["--init", "a", "--var", "b"], "--init and --var are two different starts"),
    "bad number": (["--batch", "0"], "--batch 0: must be positive"),
    "bad step setting": (["--ema", "1.5"], "--ema 1.5: must lie in"),
    "nothing to resume": (["--resume", "{files}/none"], "no such folder"),
    "path as name": (["--name", "a/b"], "a single folder name"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_code_2(case, files, tmp_path, monkeypatch, capsys):
    tiny.shard(files / "large.tar", 4, size=16)
    given, message = BAD[case]
    argv = flags(files, tmp_path, "--steps", "2", *(word.format(files=files) for word in given))
    assert main(monkeypatch, *argv) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "sft").exists()


def test_an_existing_run_is_not_touched(files, finished, monkeypatch, capsys):
    before = yaml.safe_load((finished / "config.yaml").read_text())
    argv = flags(files, finished.parent, "--name", "whole", "--steps", "2")
    assert main(monkeypatch, *argv) == 2
    assert "already exists" in capsys.readouterr().err
    assert yaml.safe_load((finished / "config.yaml").read_text()) == before


def test_what_cannot_be_resumed_is_left_as_it_is(finished, monkeypatch, capsys):
    def left() -> tuple[str, list[str]]:
        return (finished / "config.yaml").read_text(), sorted(p.name for p in (finished / "checkpoints").iterdir())

    before = left()
    assert main(monkeypatch, "--resume", str(finished), "--steps", "9", "--ema", "0") == 2
    assert "--ema 0: " in (error := capsys.readouterr().err)
    assert "has an average of the weights; resume with the run's own --ema" in error
    assert main(monkeypatch, "--resume", str(finished), "--runs", "elsewhere", "--name", "other") == 2
    assert "cannot change --name from whole to other" in capsys.readouterr().err
    earlier = str(finished / "checkpoints" / "step_00000006")
    assert main(monkeypatch, "--resume", earlier, "--steps", "5") == 2
    assert "is at step 6, beyond --steps 5" in capsys.readouterr().err
    assert left() == before


def contents(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_finished_run_has_nothing_left_to_do(finished, monkeypatch, capsys):
    before = contents(finished)
    assert main(monkeypatch, "--resume", str(finished)) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert "is finished at step 8, nothing is left to do" in said[0]
    # The lock names its last holder.
    assert {path for path, time in contents(finished).items() if before.get(path) != time} <= {str(finished / ".lock")}


def test_a_run_ends_with_its_minutes_and_its_learning_rate_falls_in_time(files, tmp_path, monkeypatch, capsys):
    clock = itertools.count(step=15)  # read at both ends of a step, so that each takes a quarter of a minute
    monkeypatch.setattr("launch.supervised.run.time", SimpleNamespace(monotonic=lambda: next(clock)))
    minutes = ["--minutes", "2", "--schedule", "linear", "--lr-end", "0", "--warmup", "0", "--lr", "1e-3"]
    run(*flags(files, tmp_path, "--name", "timed", "--steps", "1000000", *minutes))
    folder = tmp_path / "timed"
    assert json.loads((folder / "model" / "training.json").read_text())["steps"] == 8
    assert [rate for _, rate in scalars(folder, "lr")] == pytest.approx([1e-3 * (1 - step / 8) for step in range(8)])
    assert main(monkeypatch, "--resume", str(folder)) == 0
    assert "is finished after 2 minutes of training, nothing is left to do" in capsys.readouterr().out
    assert main(monkeypatch, "--resume", str(folder), "--minutes", "2.5") == 0
    assert json.loads((folder / "model" / "training.json").read_text())["steps"] == 10


def test_an_extended_run_goes_on_as_the_flags_said(files, tmp_path, monkeypatch, capsys):
    """The command that is printed when it is stopped needs no flags: the settings in force are those on disk."""
    run(*flags(files, tmp_path, "--name", "longer", "--steps", "2"))
    folder = tmp_path / "longer"
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        assert main(patch, "--resume", str(folder), "--steps", "6", "--lr", "1e-3", "--betas", "0.8", "0.9") == 130
    assert load_config(folder / "config.yaml").steps == 6
    (change,) = yaml.safe_load((folder / "changes.yaml").read_text())
    assert change["step"] == 2
    assert change["changed"]["steps"] == {"from": 2, "to": 6}
    assert change["changed"]["step.betas"] == {"from": [0.9, 0.95], "to": [0.8, 0.9]}
    assert json.loads((folder / "model" / "training.json").read_text())["steps"] == 2
    assert main(monkeypatch, "--resume", str(folder)) == 0
    assert [step for step, _ in scalars(folder, "loss/train")] == [1, 2, 3, 4, 5, 6]
    assert dict(scalars(folder, "lr"))[3] == pytest.approx(1e-3, rel=0.5)
    optimizer = torch.load(folder / "checkpoints" / "step_00000006" / "optimizer.pt")["optimizer"]
    assert [group["betas"] for group in optimizer["param_groups"]] == [(0.8, 0.9)] * 2
    assert json.loads((folder / "model" / "training.json").read_text())["steps"] == 6
    assert load_config(folder / "config.yaml").step.lr == 1e-3


def test_a_run_is_resumed_from_another_folder(files, tmp_path, monkeypatch):
    monkeypatch.chdir(files)
    given = ["--shards", "train-*.tar", "--val-shards", "val-0.tar", "--vae", "vqvae.safetensors", "--runs", str(tmp_path)]
    argv = [*given, *tiny.SHAPE, *TRAINING, *CADENCE, "--threads", "1", "--steps", "4"]
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert main(patch, *argv) == 130
    assert main(monkeypatch, "--resume", str(tmp_path / "sft"), "--vae", "vqvae.safetensors", "--steps", "3") == 0
    notes = json.loads((tmp_path / "sft" / "model" / "training.json").read_text())
    assert notes["vae"] == str(files / "vqvae.safetensors")
    monkeypatch.chdir(tmp_path)
    # The same shards by their names are the same shards; others are refused.
    shards = [str(files / "train-0.tar"), str(files / "train-1.tar")]
    assert main(monkeypatch, "--resume", "sft", "--shards", *shards, "--steps", "4") == 0
    assert main(monkeypatch, "--resume", "sft", "--shards", shards[0], "--steps", "6") == 2


def test_a_run_that_was_cut_short_before_its_first_checkpoint_starts_again(files, finished, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SftLearner, "step", killed)
        assert main(patch, *flags(files, tmp_path, "--steps", "2")) == 130
    assert main(monkeypatch, "--resume", str(tmp_path / "sft"), "--steps", "8") == 0
    assert scalars(tmp_path / "sft", "loss/train") == scalars(finished, "loss/train")


def test_two_programs_cannot_write_one_run(finished, monkeypatch, capsys):
    before = contents(finished)
    with only_writer(finished):
        assert main(monkeypatch, "--resume", str(finished), "--steps", "12") == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert f"is being written by process {os.getpid()}" in error[-1]
    assert {path for path, time in contents(finished).items() if before.get(path) != time} <= {str(finished / ".lock")}


@pytest.mark.parametrize("at", ["telemetry", "checkpoint", "model"])
def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_from_its_last_checkpoint(
    at, files, finished, tmp_path, monkeypatch, capsys
):
    argv = flags(files, tmp_path, "--steps", "8")
    with monkeypatch.context() as patch, file_size_limit() as limit:
        if at == "telemetry":
            limit_in(patch, limit, SftRun, "_log", when=lambda run: run.learner.updates == 5)
        if at == "checkpoint":
            limit_in(patch, limit, SftRun, "_save", when=lambda run: run.learner.updates == 6)
        if at == "model":
            limit_in(patch, limit, SftRun, "finish")
        assert main(patch, *argv) == 2
    error = capsys.readouterr().err
    last = {"telemetry": 3, "checkpoint": 3, "model": 8}[at]
    assert "Traceback" not in error
    said = error.strip().splitlines()[-1]
    assert "cannot be written (File too large" in said
    assert f"all progress since the checkpoint of step {last} is lost" in said
    assert f"python launch/sft.py --resume {tmp_path / 'sft'}" in said
    assert not list(tmp_path.rglob(".aside-*"))
    assert main(monkeypatch, "--resume", str(tmp_path / "sft")) == 0
    assert scalars(tmp_path / "sft", "loss/train") == scalars(finished, "loss/train")


def test_a_run_folder_that_is_removed_meanwhile_is_one_line(files, tmp_path, monkeypatch, capsys):
    step = SftLearner.step

    def removing(self: SftLearner, *given):
        if self.updates == 2:
            shutil.rmtree(tmp_path / "sft")
        return step(self, *given)

    monkeypatch.setattr(SftLearner, "step", removing)
    assert main(monkeypatch, *flags(files, tmp_path, "--steps", "8")) == 2
    assert f"{tmp_path / 'sft'} was removed or moved while the run was going" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "sft").exists()


def test_several_processes_keep_flags_given_with_resume_too(files, tmp_path, monkeypatch, capsys):
    """The driver and one worker, called as Ray Train would call it."""

    def fit(config: SftConfig, path: Path) -> None:
        parallel.run_worker({"config": config, "run": str(path), "folder": os.getcwd(), "cpus": 1})

    monkeypatch.setattr(parallel, "_fit", fit)
    monkeypatch.setattr(parallel, "get_device", lambda: torch.device("cpu"))
    folder = tmp_path / "sft"
    assert main(monkeypatch, *flags(files, tmp_path, "--steps", "4", "--workers", "2")) == 0
    assert main(monkeypatch, "--resume", str(folder), "--steps", "6", "--eval-every", "3") == 0
    assert (load_config(folder / "config.yaml").steps, load_config(folder / "config.yaml").eval_every) == (6, 3)
    (change,) = yaml.safe_load((folder / "changes.yaml").read_text())
    assert (change["step"], change["changed"]["steps"]) == (4, {"from": 4, "to": 6})
    before = contents(folder)
    capsys.readouterr()
    assert main(monkeypatch, "--resume", str(folder)) == 0
    assert "is finished at step 6, nothing is left to do" in capsys.readouterr().out
    assert main(monkeypatch, "--resume", str(folder / "checkpoints" / "step_00000006"), "--steps", "5") == 2
    assert "beyond --steps 5" in capsys.readouterr().err
    assert {path for path, time in contents(folder).items() if before.get(path) != time} <= {str(folder / ".lock")}


def test_resuming_another_kind_of_run_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text("preset: demo\n")
    assert main(monkeypatch, "--resume", str(tmp_path)) == 2
    assert "is not the config of an SFT run" in capsys.readouterr().err


def test_a_diverged_loss_ends_the_run(files, tmp_path, monkeypatch, capsys):
    argv = flags(files, tmp_path, "--steps", "4", "--lr", "1e30", "--warmup", "0", "--name", "nan")
    assert main(monkeypatch, *argv) == 2
    assert "lower --lr" in capsys.readouterr().err


@pytest.fixture(scope="module")
def corpora(tmp_path_factory, files) -> Path:
    """Two prepared sets with all splits, one of them with tokens."""
    folder = tmp_path_factory.mktemp("corpora")
    for name in ("one", "two"):
        prepare(folder / name, 60, dataset=name, size=tiny.SIZE)
    tokenize(folder / "one" / "out", load_tokenizer(str(files / "vqvae.safetensors"), (1, 2, 3)))
    return folder


def on(corpora: Path, files: Path, runs: Path, *more: str) -> list[str]:
    """Flags for training on the prepared sets, as large ones are: read as they come."""
    given = ["--vae", str(files / "vqvae.safetensors"), "--runs", str(runs), "--threads", "1", "--memory-gb", "0"]
    return [*given, *tiny.SHAPE, *CADENCE, "--warmup", "2", "--batch", "4", "--micro-batch", "2", *more]


def test_a_prepared_set_brings_its_splits_and_tokens(corpora, files, tmp_path, monkeypatch):
    monkeypatch.setattr(VQVAE, "encode", None)
    argv = on(corpora, files, tmp_path, "--shards", str(corpora / "one" / "out"), "--no-augment", "--loader-workers", "0")
    run(*argv, "--steps", "2", "--image-conditions", "1")
    for split in ("val_pair", "val_style", "val_content"):
        assert [step for step, _ in scalars(tmp_path / "sft", f"{split}/loss")] == [2]
    assert 0 <= scalars(tmp_path / "sft", "data/wait_share")[0][1] <= 1


def test_tokens_of_another_vqvae_are_refused(corpora, files, tmp_path, monkeypatch, capsys):
    _, other = tiny.save(tmp_path / "other", seed=1)
    argv = on(corpora, files, tmp_path, "--shards", str(corpora / "one" / "out"), "--no-augment", "--vae", str(other))
    assert main(monkeypatch, *argv, "--steps", "2") == 2
    assert "was written by the VQ-VAE" in capsys.readouterr().err


def test_resuming_with_other_loading_processes_repeats_and_loses_nothing(corpora, files, tmp_path, monkeypatch, capsys):
    both = ["--shards", str(corpora / "one" / "out" / "train-*.tar"), str(corpora / "two" / "out" / "train-*.tar")]
    mixed = ["--weights", "one", "1", "two", "0", "--weights-end", "one", "0.2", "two", "0.8", "--steps", "6"]
    argv = on(corpora, files, tmp_path, *both, *mixed)
    run(*argv, "--name", "whole", "--loader-workers", "0")
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        assert main(patch, *argv, "--name", "cut", "--loader-workers", "2") == 130
    assert main(monkeypatch, "--resume", str(tmp_path / "cut"), "--loader-workers", "1") == 0
    assert scalars(tmp_path / "cut", "loss/train") == scalars(tmp_path / "whole", "loss/train")
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("cut", "whole"))
    assert same(ours, theirs)


def test_an_error_in_a_loading_process_is_one_line(corpora, files, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(corpora / "two" / "out", broken)
    for shard in broken.glob("train-*.tar"):
        data = bytearray(shard.read_bytes())
        for row in pq.read_table(broken / "manifest.parquet").to_pylist():
            if row["shard"] == shard.name:
                data[row["style_offset"] : row["style_offset"] + 50] = bytes(50)
        shard.write_bytes(data)
    argv = on(corpora, files, tmp_path, "--shards", str(broken), "--steps", "2", "--loader-workers", "1")
    assert main(monkeypatch, *argv) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "2 unreadable image; make the shards again" in error.strip().splitlines()[-1]
    assert not multiprocessing.active_children()


def test_held_out_triplets_that_are_trained_on_are_counted_once(files, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run(*flags(files, tmp_path, "--steps", "1", "--shards", str(files / "train-*.tar"), str(files / "val-0.tar")))
    (warning,) = [record.getMessage() for record in caplog.records if "also trained on" in record.getMessage()]
    assert warning.startswith("4 of the 4 triplets of val are")
