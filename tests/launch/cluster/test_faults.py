"""Long runs through faults at random points, and lost nodes: what a user's cluster does to a run. Minutes: marked slow."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
import torch
import yaml
from grpo_files import config, rows, write_inputs
from hog import fill_stores
from patience import HANG
from ray.cluster_utils import Cluster
from safetensors.torch import load_file
from small_disk import small_disk

from launch import grpo
from launch.cluster.distributed import DistributedRun
from launch.common.ray_cluster import init_patiently
from launch.configs.cluster import ClusterConfig
from launch.configs.grpo import GrpoConfig
from launch.configs.io import to_plain
from launch.rl.run import execute
from launch.run.run_folder import ResumePoint, find_resume
from stylevar.errors import UserError

ROOT = Path(grpo.__file__).parents[1]
STEPS = 60
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def settings(inputs: Path, runs: Path, name: str, **fields) -> GrpoConfig:
    cluster = ClusterConfig(placement="distributed", rollout_workers=2, learners=2, unit=1, max_restarts=10)
    usual = config(inputs, runs)
    monitor = replace(usual.monitor, checkpoint_every=5, eval_every=15)
    merge = replace(usual.merge, peak_min_steps=20)
    return config(inputs, runs, name, **{"steps": STEPS, "cluster": cluster, "monitor": monitor, "merge": merge, **fields})


def start(config: GrpoConfig, *argv: str) -> subprocess.Popen:
    """The program, with Ray of its own."""
    file = config.runs / f"{config.name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(to_plain(config)))
    command = [sys.executable, str(ROOT / "launch" / "grpo.py"), "--config", str(file), "--resume", "auto", *argv]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def adapters(run: Path) -> dict[str, torch.Tensor]:
    return load_file(str(run / "checkpoints" / "latest" / "adapter" / "adapter_model.safetensors"))


def steps_done(run: Path) -> int:
    found = sorted((run / "checkpoints").glob("step_*"))
    return int(found[-1].name.removeprefix("step_")) if found else -1


def wait_for(run: Path, step: int, program: subprocess.Popen) -> None:
    until = time.monotonic() + HANG
    while steps_done(run) < step:
        assert program.poll() is None, program.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)


def kill_child(program: subprocess.Popen, role: str) -> None:
    for child in psutil.Process(program.pid).children(recursive=True):
        if f"ray::{role}" in " ".join(child.cmdline()):
            child.kill()
            return
    raise AssertionError(f"no {role} is running")


def test_random_faults_of_every_role_and_of_the_driver_change_no_bit(inputs, tmp_path):
    undisturbed = settings(inputs, tmp_path, "undisturbed")
    program = start(undisturbed)
    said = program.communicate(timeout=HANG)[0]
    assert program.returncode == 0, said
    assert "learner" in said
    disturbed = settings(inputs, tmp_path, "disturbed")
    run, draw = tmp_path / "disturbed", random.Random(0)
    program = start(disturbed)
    for after, role in ((5, "RolloutWorker"), (15, "RewardWorker"), (25, "LearnerWorker"), (35, "driver")):
        wait_for(run, after, program)
        time.sleep(draw.random())
        if role == "driver":
            program.kill()
            program.communicate()
            program = start(disturbed)
        else:
            kill_child(program, role)
    said = program.communicate(timeout=HANG)[0]
    assert program.returncode == 0, said
    expected = adapters(tmp_path / "undisturbed")
    for name, value in adapters(run).items():
        assert torch.equal(value, expected[name])
    assert rows(run) == rows(tmp_path / "undisturbed")


def test_sigterm_leaves_a_checkpoint_and_nothing_running(inputs, tmp_path):
    program = start(settings(inputs, tmp_path, "stopped"))
    run = tmp_path / "stopped"
    wait_for(run, 5, program)
    time.sleep(0.3)
    children = psutil.Process(program.pid).children(recursive=True)
    program.send_signal(signal.SIGTERM)
    said = program.communicate(timeout=HANG)[0]
    assert program.returncode == 130, said
    assert "continue with: python launch/grpo.py --resume" in said
    assert 5 <= steps_done(run) < STEPS
    assert not psutil.wait_procs(children, timeout=HANG)[1]


@pytest.mark.parametrize(
    ("role", "head", "cpus"),
    [
        ("rollout", 6, {"rollout_cpus": 2, "reward_cpus": 1, "learner_cpus": 3}),
        ("learner", 7, {"rollout_cpus": 3, "reward_cpus": 1, "learner_cpus": 2}),
    ],
)
def test_a_lost_node_is_done_without_and_comes_back(inputs, tmp_path, caplog, role, head, cpus):
    """Two nodes with room for the plan in one way only; the one with a single actor dies, and another takes its place."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": head, "include_dashboard": False})
    node: list = [cluster.add_node(num_cpus=2)]
    init_patiently(address=cluster.address, log_to_driver=False, logging_level="warning")
    try:
        wide = ClusterConfig(placement="distributed", rollout_workers=2, unit=1, **cpus)
        quiet = settings(inputs, tmp_path, "whole", cluster=wide, steps=20)
        whole = execute(quiet, None, DistributedRun()).path

        class Losing(DistributedRun):
            def _launch(self, step: int) -> None:
                super()._launch(step)
                if step == 6 and node:
                    cluster.remove_node(node.pop(), allow_graceful=False)
                if step == 12 and len(cluster.worker_nodes) == 0:
                    cluster.add_node(num_cpus=3)
                    self._until(lambda: self._rollout.ready)

        run = execute(replace(quiet, name="lost"), None, Losing()).path
        assert rows(run) == rows(whole)
        for name, value in adapters(run).items():
            assert torch.equal(value, adapters(whole)[name])
        assert "was lost" in caplog.text or role == "learner"
        assert "it takes the place of rollout-1" in caplog.text or role == "rollout"
        assert "rollout-1 is back" in caplog.text or "rollout-0 is back" in caplog.text
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_the_plan_of_a_larger_cluster_is_refused_at_once(inputs, tmp_path):
    many = ClusterConfig(placement="distributed", rollout_workers=40, rollout_cpus=1)
    program = start(settings(inputs, tmp_path, "large", cluster=many))
    said = program.communicate(timeout=HANG)[0]
    assert program.returncode == 2, said
    assert "--rollout-workers" in said
    assert "Traceback" not in said
    assert not (tmp_path / "large").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a small file system")
def test_a_full_object_store_ends_the_run_in_one_line_and_a_resumed_run_is_the_same(inputs, tmp_path, monkeypatch):
    """Another program fills the store, and the folder where it could grow, and keeps them full."""
    wide = ClusterConfig(placement="distributed", rollout_workers=2, learners=2, unit=1, call_timeout=20.0, max_restarts=1)
    usual = config(inputs, tmp_path).learner
    learner = replace(usual, lora_rank=256)  # adapters too large for the room that older ones leave
    quiet = config(inputs, tmp_path, "whole", cluster=wide, steps=8, learner=learner)

    class Filling(DistributedRun):
        def _launch(self, step: int) -> None:
            if step == 3:
                fill_stores(seconds=HANG)
            super()._launch(step)

    with small_disk(tmp_path / "spill", 2**22):
        monkeypatch.setenv("RAY_object_spilling_directory", str(tmp_path / "spill"))

        def run(settings: GrpoConfig, point: ResumePoint | None, worker: DistributedRun) -> Path:
            init_patiently(address="local", num_cpus=8, include_dashboard=False, object_store_memory=80 * 2**20)
            try:
                return execute(settings, point, worker).path
            finally:
                ray.shutdown()  # ends the program that fills the store, too

        whole = run(quiet, None, DistributedRun())
        with pytest.raises(UserError, match="(call-timeout 20 s|object-store-memory); continue with: python launch"):
            run(replace(quiet, name="full"), None, Filling())
        resumed = run(replace(quiet, name="full"), find_resume("auto", tmp_path, "full"), DistributedRun())
    assert rows(resumed) == rows(whole)
    for name, value in adapters(resumed).items():
        assert torch.equal(value, adapters(whole)[name])
