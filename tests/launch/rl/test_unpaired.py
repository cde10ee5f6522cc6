"""GRPO on pairs without targets: training, held-out scores, pictures and the report, in every placement."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import torch
from grpo_files import config, rows, write_inputs
from PIL import Image

from launch.cluster.distributed import DistributedRun
from launch.common.ray_cluster import init_patiently
from launch.configs.cluster import ClusterConfig
from launch.configs.grpo import GrpoConfig
from launch.rl.colocated import ColocatedWorker
from launch.rl.run import execute, report
from launch.run_report.page import render
from launch.run_report.record import read_run
from learner.grpo.config import LearnerConfig
from reward.config import RewardConfig
from stylevar.errors import UserError

REWARD = RewardConfig("lite@content=2,color@style=0.05")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("pairs"), targets=False)


def settings(inputs: Path, runs: Path, **fields) -> GrpoConfig:
    learner = LearnerConfig(lora_rank=2, lr=1e-2, credit="gradient")
    return config(inputs, runs, **{"reward": REWARD, "steps": 2, "learner": learner, **fields})


def test_a_run_needs_no_targets(inputs, tmp_path, capsys):
    ran = settings(inputs, tmp_path)
    run = execute(ran, None, ColocatedWorker())
    report(ran, run)
    assert "distance_color@style" in capsys.readouterr().out
    recorded = rows(run.path)
    assert len(recorded) == 8
    for row in recorded:
        distances = 2 * row["component_distance_lite@content"] + 0.05 * row["component_distance_color@style"]
        assert row["reward"] == pytest.approx(-distances, rel=1e-5)
    parts = [pq.read_schema(path).names for path in (run.path / "trajectories").glob("*.parquet")]
    unwanted = {"component_ssim", "component_color", "component_target_sharpness"}
    assert not unwanted.intersection(*parts)
    scores = json.loads((run.path / "heldout" / "heldout_00000002.json").read_text())
    assert len(scores["keys"]) == 3
    assert "distance_color@style" in scores["components"]
    with Image.open(run.path / "before_after.png") as picture:
        assert picture.width < 7 * (2 * 12 + 4)  # content, style and four samples
    page = render(read_run(run.path))
    assert "near its start" in page
    assert "near the targets&#x27;" not in page
    assert "near the targets'" not in page


@pytest.mark.parametrize("reward", ["lite", "color@style=0.05,lite=1"])
def test_a_distance_to_the_target_is_refused_before_the_run(inputs, tmp_path, reward):
    with pytest.raises(UserError, match=r"the reward lite compares with targets, .*train-.*write lite@content") as caught:
        ColocatedWorker().setup(settings(inputs, tmp_path, reward=RewardConfig(reward)), None)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_distributed_run_is_the_colocated_one(inputs, tmp_path):
    init_patiently(address="local", num_cpus=6, include_dashboard=False, log_to_driver=False)
    try:
        cluster = ClusterConfig(placement="distributed", unit=1)
        whole = execute(settings(inputs, tmp_path / "one"), None, ColocatedWorker())
        spread = execute(settings(inputs, tmp_path / "many", cluster=cluster), None, DistributedRun())
        found, expected = (torch.tensor([row["reward"] for row in rows(run.path)]) for run in (spread, whole))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        with pytest.raises(UserError, match="the reward lite compares with targets"):
            DistributedRun().setup(settings(inputs, tmp_path, cluster=cluster, reward=RewardConfig("lite")), None)
    finally:
        ray.shutdown()
