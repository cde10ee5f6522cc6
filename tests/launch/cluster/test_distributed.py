"""The distributed placement: the same run as the colocated one, however many workers do it and whichever are lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
import torch
from grpo_files import config, rows, write_inputs
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launch.cluster.distributed import DistributedRun
from launch.common.ray_cluster import init_patiently
from launch.common.stop import StopRequest
from launch.configs.cluster import ClusterConfig
from launch.configs.grpo import GrpoConfig
from launch.rl.colocated import ColocatedWorker
from launch.rl.reports import StepReport
from launch.rl.run import execute
from launch.run.run_folder import find_resume
from learner.grpo.config import LearnerConfig
from rollout.config import RolloutConfig

ONE = ClusterConfig(placement="distributed", check_weights=True, unit=1)
NO_MERGES = {"merge": replace(config(Path(), Path()).merge, peak_min_steps=10**6)}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    init_patiently(address="local", num_cpus=6, include_dashboard=False, log_to_driver=False)
    yield write_inputs(tmp_path_factory.mktemp("inputs"))
    ray.shutdown()


def run(settings: GrpoConfig, resume: bool = False, worker: DistributedRun | None = None) -> Path:
    point = find_resume("auto", settings.runs, settings.name) if resume else None
    return execute(settings, point, worker or DistributedRun()).path


def adapters(path: Path) -> dict[str, torch.Tensor]:
    return load_file(str(path / "checkpoints" / "latest" / "adapter" / "adapter_model.safetensors"))


def scalars(path: Path, tag: str) -> dict[int, float]:
    events = EventAccumulator(str(path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


def assert_same_rows(found: list[dict], expected: list[dict], atol: float = 1e-4) -> None:
    """The same trajectories: keys, seeds, versions, and rewards and log-probs but for rounding."""
    exact = ("step", "key", "g", "seed", "version_merges", "version_updates")
    assert [[row[name] for name in exact] for row in found] == [[row[name] for name in exact] for row in expected]
    for name in ("reward", "logp", "kl", "advantage"):
        actual, wanted = (torch.tensor([row[name] for row in some]) for some in (found, expected))
        torch.testing.assert_close(actual, wanted, atol=atol, rtol=1e-4)


@pytest.fixture(scope="module")
def colocated(inputs, tmp_path_factory) -> Path:
    """The run of one process, with its merges."""
    settings = config(inputs, tmp_path_factory.mktemp("colocated"))
    return execute(settings, None, ColocatedWorker()).path


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory) -> Path:
    """The distributed run of one worker per role, all hashes compared."""
    return run(config(inputs, tmp_path_factory.mktemp("undisturbed"), cluster=ONE))


def test_it_is_the_colocated_run(colocated, undisturbed):
    assert_same_rows(rows(undisturbed), rows(colocated))
    assert max(row["version_merges"] for row in rows(colocated)) > 0
    for name, value in adapters(undisturbed).items():
        torch.testing.assert_close(value, adapters(colocated)[name], atol=1e-4, rtol=1e-3)
    heldout = [scalars(path, "reward/heldout") for path in (undisturbed, colocated)]
    assert heldout[0] == pytest.approx(heldout[1], abs=1e-4)
    assert (undisturbed / "model" / "model.safetensors").is_file()
    assert set(scalars(undisturbed, "policy/staleness").values()) == {0.0}
    assert {*scalars(undisturbed, "policy/ratio_mean").values()} == {1.0}
    assert min(scalars(undisturbed, "sync/bytes").values()) > 0


SLOW = [pytest.param(credit, marks=pytest.mark.slow) for credit in ("prefix", "local", "vmr")]


@pytest.mark.parametrize("credit", ["gradient", *SLOW])
def test_credit_is_the_colocated_runs_however_many_learn(credit, inputs, tmp_path):
    """What rewards tell beside their values goes from the reward workers to the learners; what is averaged, over all."""
    # A single token attends to nothing but itself: as the only coarse one, it would give the queries a gradient of mere
    # rounding, which Adam scales up.
    learner = LearnerConfig(lora_rank=2, lr=1e-2, credit=credit, credit_middle=2, kl_estimator="full")
    fields = {"learner": learner, "rollout": RolloutConfig(group=4, top_k=20), **NO_MERGES}
    alone = execute(config(inputs, tmp_path, "alone", **fields), None, ColocatedWorker()).path
    two = replace(ONE, learners=2, rollout_workers=2)
    shared = run(config(inputs, tmp_path, "shared", cluster=two, **fields))
    assert_same_rows(rows(shared), rows(alone), atol=2e-3)
    for name, value in adapters(shared).items():
        torch.testing.assert_close(value, adapters(alone)[name], atol=2e-3, rtol=2e-2)
    assert min(scalars(shared, "credit/spread").values()) > 0


class Disturbed(DistributedRun):
    """Does something in some steps, while they are being sampled: as soon as a worker of a role is at work."""

    def __init__(self, deeds: dict[int, tuple[str, Callable[[], None]]], stop: StopRequest | None = None) -> None:
        super().__init__(self._look)
        self.deeds, self.stop = deeds, stop

    def step(self, step: int) -> StepReport:
        self.at = step
        return super().step(step)

    def _look(self) -> bool:
        """Asked again and again while a step is sampled, after tasks were given out."""
        role, deed = self.deeds.get(self.at, ("", None))
        if deed is not None and any(member.busy for member in getattr(self, f"_{role}").members):
            del self.deeds[self.at]
            deed()
        return self.stop is not None and self.stop.requested


def kill(role: str) -> None:
    """SIGKILL an actor of the Ray that this process started."""
    ours = [p for p in psutil.process_iter(["cmdline"]) if f"ray::{role}" in " ".join(p.info["cmdline"] or [])]
    next(p for p in ours if os.getpid() in [parent.pid for parent in p.parents()]).kill()


@pytest.mark.slow
def test_a_run_survives_the_loss_of_every_role_unchanged(inputs, undisturbed, tmp_path, caplog):
    """Two rollout workers, so that one is there when the other is not; the learners go back to a checkpoint."""
    deeds = {
        1: ("rollout", lambda: kill("RolloutWorker")),
        3: ("reward", lambda: kill("RewardWorker")),
        5: ("rollout", lambda: kill("LearnerWorker")),
    }
    settings = config(inputs, tmp_path, cluster=replace(ONE, rollout_workers=2))
    found = run(settings, worker=Disturbed(deeds))
    assert not deeds
    for name, value in adapters(undisturbed).items():
        assert torch.equal(adapters(found)[name], value)
    assert_same_rows(rows(found), rows(undisturbed), atol=0)
    assert scalars(found, "reward/heldout") == scalars(undisturbed, "reward/heldout")
    assert sum(scalars(found, f"restarts/{role}")[8] for role in ("rollout", "reward", "learner")) == 3
    assert "rollout" in caplog.text
    assert "is done again with the same seeds" in caplog.text


@pytest.mark.slow
def test_more_workers_of_every_role_change_nothing_but_rounding(inputs, tmp_path):
    fields = {"conditions": 4, "steps": 4, "merge": NO_MERGES["merge"]}
    fields["learner"] = replace(config(inputs, tmp_path).learner, minibatches=2, updates_per_rollout=2)
    many = replace(ONE, rollout_workers=2, reward_workers=2, learners=2)
    alone = execute(config(inputs, tmp_path, "alone", **fields), None, ColocatedWorker()).path
    together = run(config(inputs, tmp_path, "together", cluster=many, **fields))
    assert_same_rows(rows(together), rows(alone), atol=1e-3)
    for name, value in adapters(together).items():
        torch.testing.assert_close(value, adapters(alone)[name], atol=1e-4, rtol=1e-3)
    for tag in ("kl/raw", "grad/norm", "loss/total", "policy/entropy", "reward/std", "kl/per_scale/1"):
        found, expected = scalars(together, tag), scalars(alone, tag)
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5), tag


@pytest.mark.slow
def test_pipelined_rollouts_lag_as_asked_and_resume_exactly(inputs, tmp_path):
    """A signal in the middle of a step leaves a checkpoint at once, from which the run goes on as if there had been none."""
    ahead = replace(ONE, max_staleness=1)
    learner = replace(config(inputs, tmp_path).learner, importance_cap=2.0)
    whole = run(config(inputs, tmp_path, "whole", cluster=ahead, learner=learner))
    assert scalars(whole, "policy/staleness")[1] == 0.0
    assert 1.0 in scalars(whole, "policy/staleness").values()
    assert set(scalars(whole, "policy/importance_mean").values()) != {1.0}
    assert max(row["version_merges"] for row in rows(whole)) > 0
    stop = StopRequest()
    stopped = config(inputs, tmp_path, "stopped", cluster=ahead, learner=learner)
    worker = Disturbed({5: ("rollout", lambda: os.kill(os.getpid(), signal.SIGINT))}, stop)
    with pytest.raises(SystemExit) as ended:
        execute(stopped, None, worker, stop)
    assert ended.value.code == 130
    found = run(stopped, resume=True)
    assert_same_rows(rows(found), rows(whole), atol=0)
    for name, value in adapters(whole).items():
        assert torch.equal(adapters(found)[name], value)
