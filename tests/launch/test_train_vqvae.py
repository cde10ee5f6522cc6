"""`launch/train_vqvae.py`: trains, resumes as if it had not stopped, starts from another shape."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from launch import train_vqvae as program
from launch.common.stop import StopRequest
from launch.configs.shape import VaeShape
from launch.configs.vqvae import TrainVqvaeConfig
from launch.supervised.vqvae import TokenizerRun, psnr
from learner.supervised.config import TokenizerStepConfig
from learner.supervised.vqvae import mirrored
from stylevar.errors import UserError

SHAPE = VaeShape(patch_nums=(1, 2, 3), V=32, Cvae=8, ch=32, ch_mult=(1, 1, 1))


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("vqvae") / "train-0.tar"
    tiny.shard(path, 6)
    return str(path)


def config(shard: str, out: Path, **changes) -> TrainVqvaeConfig:
    given = {"shape": SHAPE, "steps": 4, "batch": 4, "warmup": 2, "revive_every": 2, "eval_every": 2, "device": "cpu"}
    return TrainVqvaeConfig(shards=(shard,), heldout=(shard,), out=out, **{**given, **changes})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(str(folder / "vqvae.safetensors"))


def equal(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_stopped_run_resumes_as_if_it_had_not_stopped(shard, tmp_path, monkeypatch):
    program.main(config(shard, tmp_path / "whole"))
    run = TokenizerRun(config(shard, tmp_path / "cut"), torch.device("cpu"))
    stop = StopRequest()
    step = run.learner.step

    def stopping(*arguments):
        stop.requested = run.done == 1
        return step(*arguments)

    monkeypatch.setattr(run.learner, "step", stopping)
    assert run.loop(stop) is False
    assert run.done == 2
    assert not equal(tmp_path / "whole", tmp_path / "cut")
    program.main(config(shard, tmp_path / "cut", resume=True))
    assert equal(tmp_path / "whole", tmp_path / "cut")
    metrics = json.loads((tmp_path / "cut" / "metrics.json").read_text())
    assert [point["steps"] for point in metrics["history"]] == [2, 4]
    assert metrics["history"][-1]["images"] == 16
    assert (tmp_path / "cut" / "reconstructions.png").is_file()


def test_training_brings_reconstructions_nearer(shard, tmp_path):
    run = TokenizerRun(
        config(shard, tmp_path, steps=40, eval_every=100, step=TokenizerStepConfig(lr=3e-3)), torch.device("cpu")
    )
    before = psnr(run.learner.average, run.heldout["stylised"])
    assert run.loop(StopRequest())
    assert run.history[-1]["psnr_stylised_db"] > before + 1


def test_minutes_end_a_training_and_its_schedule(shard, tmp_path):
    run = TokenizerRun(config(shard, tmp_path, steps=10**6, minutes=1.0), torch.device("cpu"))
    run.seconds = 59.9999
    assert run.loop(StopRequest())
    assert run.done <= 2
    assert run.progress >= 1


def test_bf16_trains_too(shard, tmp_path):
    settings = config(shard, tmp_path, steps=2, step=TokenizerStepConfig(precision="bf16"))
    program.main(settings)
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


def test_another_shape_starts_from_what_fits(shard, tmp_path, capsys):
    program.main(config(shard, tmp_path / "small", steps=1))
    wider = replace(SHAPE, V=64)
    run = TokenizerRun(
        config(shard, tmp_path / "wide", shape=wider, init=tmp_path / "small" / "vqvae.safetensors"), torch.device("cpu")
    )
    said = capsys.readouterr().out
    assert "quantize.embedding.weight" in said
    assert "encoder.conv_in" not in said
    kept = weights(tmp_path / "small")["encoder.conv_in.weight"]
    assert torch.equal(run.learner.vae.encoder.conv_in.weight.detach(), kept)


def test_what_cannot_be_resumed_says_why(shard, tmp_path):
    with pytest.raises(UserError, match="start without --resume"):
        program.main(config(shard, tmp_path, resume=True))
    program.main(config(shard, tmp_path, steps=1))
    with pytest.raises(UserError, match="another shape"):
        program.main(config(shard, tmp_path, steps=2, resume=True, shape=replace(SHAPE, V=64)))
    with pytest.raises(UserError, match="--batch 0"):
        config(shard, tmp_path, batch=0)


def test_half_of_the_images_are_mirrored():
    images = torch.arange(2 * 3 * 2 * 2, dtype=torch.uint8).view(2, 3, 2, 2).repeat(200, 1, 1, 1)
    turned = mirrored(images, torch.Generator().manual_seed(0))
    flipped = (turned == images.flip(-1)).flatten(1).all(1)
    assert ((turned == images).flatten(1).all(1) ^ flipped).all()
    assert 160 < flipped.sum() < 240
