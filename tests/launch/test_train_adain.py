"""`launch/train_adain.py`: shards in, a decoder out that says what encoder it belongs to."""

from __future__ import annotations

import sys
from pathlib import Path

import program
import pytest
import tiny
import torch
import vgg_files
import yaml
from PIL import Image
from safetensors.torch import load_file

from data.config import AugmentConfig
from launch import train_adain
from launch.common.defaults import DEMO_DATA
from launch.common.stop import STOPPED, StopRequest
from launch.evaluation.baselines.build import build_baseline
from launch.evaluation.baselines.config import TrainAdainConfig
from launch.evaluation.baselines.decoder import decoder_notes
from launch.evaluation.baselines.pairs import PairBatch, PairBatches, open_train
from launch.evaluation.baselines.training import DECODER_FILE, AdainRun, train
from learner.supervised.schedule import ScheduleConfig
from stylevar.errors import UserError

SIZE = 16


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> str:
    """A shard of noise."""
    return str(tiny.shard(tmp_path_factory.mktemp("noise") / "train-00000.tar", 12, SIZE))


def config(shards: str, out: Path, **settings) -> TrainAdainConfig:
    small = {"steps": 2, "batch": 2, "schedule": ScheduleConfig("cosine", warmup=0), "device": "cpu", "ema": 0.0}
    return TrainAdainConfig((shards,), out=out, **{**small, **settings})


def weights(path: Path) -> torch.Tensor:
    """All of a decoder's numbers in one row."""
    return torch.cat([value.flatten() for _, value in sorted(load_file(str(path)).items())])


def test_a_few_steps_on_the_demo_set_lower_the_loss_and_the_file_loads(tmp_path):
    run = AdainRun(
        config(
            str(DEMO_DATA / "train-00000.tar"),
            tmp_path / "out",
            heldout=(str(DEMO_DATA / "heldout-*.tar"),),
            steps=8,
            lr=2e-3,
            log_every=4,
        )
    )
    before = run.validate()
    assert run.train(StopRequest()) == 8
    after = run.validate()
    assert after.total < 0.8 * before.total
    assert decoder_notes(tmp_path / "out" / DECODER_FILE)["encoder"] == "lite"
    method = build_baseline("adain", None, tmp_path / "out" / DECODER_FILE)
    assert method.name == "adain-lite"
    images = run.heldout.content[:2]
    assert method.samples(images, run.heldout.style[:2], ("a", "b"), 1, 0).float().std() > 1
    with Image.open(tmp_path / "out" / "samples.png") as grid:
        assert grid.width > 8 * 80
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["steps"] == 8
    assert any((tmp_path / "out" / "tensorboard").iterdir())


@pytest.mark.parametrize("kind", ["normalised", "torchvision"])
def test_a_vgg_decoder_goes_with_its_encoder_only(shard, tmp_path, kind):
    files = {
        "normalised": vgg_files.save(vgg_files.normalised(), tmp_path / "normalised.pth"),
        "torchvision": vgg_files.save(vgg_files.torchvision(), tmp_path / "torchvision.pth", "features."),
    }
    path, finished = train(config(shard, tmp_path / "out", encoder="vgg", vgg=files[kind]))
    assert finished
    assert build_baseline("adain", files.pop(kind), path).name == "adain"
    (other,) = files.values()
    with pytest.raises(UserError, match=f"trained with the encoder vgg19-{kind}"):
        build_baseline("adain", other, path)


def test_the_same_seed_gives_the_same_decoder(shard, tmp_path):
    runs = {"a": 0, "b": 0, "c": 1}
    found = [weights(train(config(shard, tmp_path / name, seed=seed))[0]) for name, seed in runs.items()]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_stopped_it_saves_what_it_has_and_goes_on_from_there(shard, tmp_path):
    stopping = StopRequest()
    stopping.requested = True
    assert AdainRun(config(shard, tmp_path / "first", steps=100)).train(stopping) == 1
    assert decoder_notes(tmp_path / "first" / DECODER_FILE)["steps"] == "1"
    second = AdainRun(config(shard, tmp_path / "second", init=tmp_path / "first" / DECODER_FILE))
    scratch = AdainRun(config(shard, tmp_path / "third"))
    assert not torch.equal(second.decoder[1].weight, scratch.decoder[1].weight)
    assert second.train(StopRequest()) == 2


def test_ctrl_c_ends_with_its_own_code(shard, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("launch.evaluation.baselines.training.train", lambda config: (config.out / DECODER_FILE, False))
    code = program.exit_code(monkeypatch, train_adain.main, "--shards", shard, "--out", tmp_path / "out")
    assert code == STOPPED
    assert "continue with --init" in capsys.readouterr().out


def test_contents_and_styles_are_drawn_apart(shard):
    triplets, in_memory = open_train([shard], 1.0)
    assert in_memory
    pairs = PairBatches(triplets, AugmentConfig(augment=False), 64, seed=0)
    batch = pairs[3]
    assert isinstance(batch, PairBatch)
    again = pairs[3]
    assert isinstance(again, PairBatch)
    assert torch.equal(batch.content, again.content)
    assert torch.equal(batch.style, again.style)
    own = {c.content.numpy().tobytes(): c.style.numpy().tobytes() for c in map(triplets.usable, range(len(triplets)))}
    drawn = [(c.numpy().tobytes(), s.numpy().tobytes()) for c, s in zip(batch.content, batch.style, strict=True)]
    together = sum(own[content] == style for content, style in drawn)
    assert together < 20  # 64 / 12 on average
    assert set(own.values()) >= {style for _, style in drawn}


@pytest.mark.slow
def test_reading_processes_give_the_same_pairs(shard, tmp_path):
    alone, with_reader = (
        weights(train(config(shard, tmp_path / str(readers), loader_workers=readers))[0]) for readers in (0, 1)
    )
    assert torch.equal(alone, with_reader)


def test_an_existing_decoder_is_kept(shard, tmp_path):
    path, _ = train(config(shard, tmp_path / "out", steps=1))
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"decoder\.safetensors exists: choose another --out"):
        train(config(shard, tmp_path / "out", seed=5))
    assert path.read_bytes() == before


def test_pictures_that_do_not_fit_the_strides_are_refused(tmp_path):
    shards = tiny.shard(tmp_path / "train-00000.tar", 3, 12)
    with pytest.raises(UserError, match=r"are 12 px: AdaIN needs a multiple of 8, and at least 16"):
        AdainRun(config(str(shards), tmp_path / "out"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "0"], "--steps 0: must be positive"),
        (["--style-weight", "-1"], "--style-weight -1.0: must be at least 0"),
        (["--ema", "1"], "--ema 1.0: must lie in"),
        (["--encoder", "vgg"], "--encoder vgg and --vgg FILE go together"),
        (["--vgg", "vgg.pth"], "--encoder vgg and --vgg FILE go together"),
        (["--encoder", "vgg", "--vgg", "none.pth"], "checkpoint none.pth does not exist"),
        (["--init", "none.safetensors"], "none.safetensors does not exist"),
    ],
)
def test_bad_flags_are_one_line_and_code_2(shard, tmp_path, monkeypatch, capsys, flags, message):
    code = program.exit_code(monkeypatch, train_adain.main, "--shards", shard, "--out", tmp_path / "out", *flags)
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_names_every_flag(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_adain.py", "--help"])
    with pytest.raises(SystemExit):
        train_adain.main()
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in ("--shards", "--encoder", "--vgg", "--style-weight", "--lr", "--style-crop"))
