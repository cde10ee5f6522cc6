"""What a checkpoint may be: weights with their tokenizer somewhere, or a run's adapters on the base that it names."""

from __future__ import annotations

import shutil

import grpo_files
import pytest
import tiny
import torch
import yaml

from launch.configs.io import to_plain
from launch.run.model import load_model
from learner.grpo.trainer import Trainer
from stylevar.checkpoint import save_model
from stylevar.errors import UserError
from stylevar.policy import Policy


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with a checkpoint of adapters that have an effect, and a finished model without its tokenizer."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "in").mkdir()
    config = grpo_files.config(grpo_files.write_inputs(folder / "in"), folder / "runs")
    path = folder / "runs" / "run"
    checkpoint = path / "checkpoints" / "step_00000002"
    checkpoint.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(to_plain(config)))
    policy = Policy(config.policy_source(), torch.device("cpu"))
    with torch.no_grad():
        for parameter in policy.adapters.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    Trainer(policy, config.learner, 1.0).save(checkpoint, "init")
    (path / "model").mkdir()
    save_model(policy.adapters.baked_state(), policy.model.arch, path / "model")
    return path


def test_adapters_are_baked_into_their_base(run):
    adapted = load_model(str(run / "checkpoints" / "step_00000002")).state_dict()
    finished = load_model(str(run / "model")).state_dict()
    assert adapted.keys() == finished.keys()
    for name, value in finished.items():
        torch.testing.assert_close(adapted[name], value)
    assert load_model(str(run)).state_dict().keys() == finished.keys()  # the run itself is its finished model
    base = load_model(str(run.parent.parent / "in" / "sft")).state_dict()
    assert any(not torch.equal(base[name], value) for name, value in adapted.items())


def test_a_tokenizer_must_be_known(tmp_path):
    model, vae = tiny.save(tmp_path / "with")
    assert load_model(str(model)).arch.image_size == tiny.SIZE
    alone = tmp_path / "alone"
    shutil.copytree(tmp_path / "with", alone)
    (alone / "vqvae.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no vqvae.safetensors beside it .* --vae"):
        load_model(str(alone))
    assert load_model(str(alone), str(vae)).arch.image_size == tiny.SIZE


def test_adapters_without_their_run_are_refused(run, tmp_path):
    shutil.copytree(run / "checkpoints" / "step_00000002", tmp_path / "lost")
    with pytest.raises(UserError, match=r"no config.yaml of their run"):
        load_model(str(tmp_path / "lost"))
