"""How held-out conditions are sampled, and runs that end when their score stands still."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from grpo_files import config, write_inputs

from launch.rl.colocated import ColocatedWorker
from launch.rl.progress import Progress
from launch.rl.reports import HeldoutReport
from launch.rl.run import execute, report
from launch.run.run_folder import find_resume
from learner.grpo.merging import MergeController
from stylevar.config import ModelConfig
from stylevar.sampling_config import SamplingConfig


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def test_the_models_own_settings_hold_where_nothing_is_said(inputs, tmp_path):
    settings = config(inputs, tmp_path)
    assert settings.heldout_sampling() == settings.rollout  # as before there were settings of their own
    own = SamplingConfig(temperature=0.4, top_k=30, top_p=0.9)
    filled = settings.with_heldout_sampling(own)
    assert (filled.monitor.eval_temperature, filled.monitor.eval_top_k, filled.monitor.eval_top_p) == (0.4, 30, 0.9)
    assert filled.heldout_sampling() == replace(settings.rollout, temperature=0.4, top_k=30, top_p=0.9)
    assert filled.rollout == settings.rollout
    said = replace(settings, monitor=replace(settings.monitor, eval_temperature=0.7)).with_heldout_sampling(own)
    assert said.monitor.eval_temperature == 0.7


def test_a_run_scores_as_its_model_says_and_writes_that_down(inputs, tmp_path):
    """Greedy samples of one condition are all alike; those of the training are not."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (inputs / "sft").iterdir():
        (folder / file.name).symlink_to(file)
    arch = ModelConfig.load(folder / "config.json")
    (folder / "config.json").unlink()
    replace(arch, sampling=SamplingConfig(temperature=0.9, top_k=1)).save(folder / "config.json")
    settings = replace(config(inputs, tmp_path, steps=1), init=str(folder))
    run = execute(settings, None, ColocatedWorker())
    assert "eval_top_k: 1\n" in run.config.read_text()
    rewards = json.loads((run.path / "heldout" / "heldout_00000000.json").read_text())["rewards"]
    assert all(len(set(group)) == 1 for group in rewards)


class Scored(ColocatedWorker):
    """Has these held-out scores, one after the other."""

    def __init__(self, scores: list[float]) -> None:
        self.scores = scores

    def evaluate(self, name: str, conditions: int | None = None) -> HeldoutReport:
        result = super().evaluate(name, conditions)
        return result if conditions is None else replace(result, rewards=0 * result.rewards + self.scores.pop(0))


def test_a_run_ends_when_its_score_has_long_been_flat(inputs, tmp_path, capsys):
    settings = config(inputs, tmp_path, steps=8)
    settings = replace(settings, monitor=replace(settings.monitor, eval_every=1, stop_when_flat=2))
    run = execute(settings, None, Scored([-3.5, -3.0, -2.0, -2.5, -2.0, 0.0, 0.0, 0.0, 0.0]))
    assert "no better held-out score 2 times in a row: ending after 4 steps" in capsys.readouterr().out
    assert run.steps()[-1] == 4
    assert (run.path / "model" / "model.safetensors").is_file()
    report(settings, run)
    assert "paired difference" in capsys.readouterr().out


def test_the_count_of_flat_scores_survives_a_checkpoint(inputs, tmp_path):
    progress = Progress(MergeController(config(inputs, tmp_path).merge))
    assert [progress.scored(score) for score in (-2.0, -3.0)] == [True, False]
    assert progress.flat == 1
    assert [progress.scored(score) for score in (-1.0, -1.0, -3.0)] == [True, False, False]  # a new best starts it again
    progress.save(tmp_path / "progress.json")
    other = Progress(MergeController(config(inputs, tmp_path).merge))
    other.load(tmp_path / "progress.json")
    assert (other.best, other.flat) == (-1.0, 2)


def test_a_run_of_an_older_version_is_scored_as_it_was_begun(inputs, tmp_path):
    settings = config(inputs, tmp_path, steps=2)
    run = execute(settings, None, ColocatedWorker())
    old = replace(settings, steps=4)  # says nothing of the sampling
    point = find_resume("auto", settings.runs, settings.name)
    execute(old, point, ColocatedWorker())
    assert "eval_temperature: null" in run.config.read_text()
