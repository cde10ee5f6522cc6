"""Which weights who holds: hashes that disagree or stand still are found, merges are replayed once, others are refused."""

from __future__ import annotations

from typing import Any

import pytest
import small_model
import tiny
import torch

import learner.grpo.actor
import rollout.actor
from launch.cluster.pool import Member
from launch.cluster.weights import Weights, WeightsDiverged
from learner.grpo.actor import WeightsInfo
from rollout.actor import RolloutWorker, SyncInfo, WrongVersion
from rollout.config import RolloutConfig
from stylevar.contracts import PolicyVersion
from stylevar.policy import Policy, PolicySource
from stylevar.wire import AdapterWire


class FakeActor:
    """Remembers what it was asked to sync."""

    def __init__(self) -> None:
        self.asked: list[tuple] = []

    @property
    def sync(self) -> FakeActor:
        return self

    def remote(self, *arguments: Any) -> str:
        self.asked.append(arguments)
        return "a reference"


class FakeCalls:
    def add(self, what: str, member: Member, reference: Any, done: Any, failed: Any) -> None:
        self.done = done


class FakePool:
    def __init__(self, *members: Member) -> None:
        self.members = members


def version(updates: int, merges: int = 0) -> PolicyVersion:
    return PolicyVersion(merges, updates)


def info(updates: int, fingerprint: str | None, merges: int = 0) -> WeightsInfo:
    return WeightsInfo(0.1, version(updates, merges), fingerprint)


@pytest.fixture
def setting() -> tuple[Weights, Member, FakeCalls]:
    member, calls = Member("rollout-0", actor=FakeActor()), FakeCalls()
    weights = Weights(FakePool(member), calls, hashed=True, synced=lambda _: None)
    weights.restart(version(0))
    weights.take("adapters 0", [info(0, "a")])
    return weights, member, calls


def test_a_worker_with_another_hash_is_found(setting):
    weights, member, calls = setting
    weights.sync(member, version(0))
    calls.done(SyncInfo(0.1, 8, "a"))
    with pytest.raises(WeightsDiverged, match="rollout-0 holds weights with the hash b, but the learner.s have a"):
        calls.done(SyncInfo(0.1, 8, "b"))


def test_learners_that_disagree_are_found(setting):
    weights, _, _ = setting
    with pytest.raises(WeightsDiverged, match="the learners hold different weights"):
        weights.take("adapters 1", [info(1, "b"), info(1, "c")])


def test_an_update_that_changes_nothing_is_found(setting):
    weights, _, _ = setting
    weights.take("adapters 0", [info(0, "a")], updated=True)  # skipped by the guard: no new version
    with pytest.raises(WeightsDiverged, match="no weight has changed"):
        weights.take("adapters 1", [info(1, "a")], updated=True)


def test_merges_are_replayed_once_and_only_by_those_who_lack_them(setting):
    weights, member, _ = setting
    weights.sync(member, version(0))
    weights.take("adapters 1", [info(1, "b", merges=1)], snapshot="merge 1")
    weights.take("adapters 2", [info(2, "c", merges=2)], snapshot="merge 2")
    weights.sync(member, version(2, merges=2))
    weights.sync(member, version(2, merges=2))
    assert [asked[:2] for asked in member.actor.asked] == [
        ([], ["adapters 0"]),
        (["merge 1", "merge 2"], ["adapters 2"]),
    ]
    member.held = None  # a replacement starts from the run's base
    weights.sync(member, version(2, merges=2))
    assert member.actor.asked[-1][0] == ["merge 1", "merge 2"]
    assert weights.restart(version(2, merges=2))


@pytest.fixture
def worker(tmp_path, monkeypatch) -> RolloutWorker:
    """A rollout worker in this process; references are the objects themselves."""
    monkeypatch.setattr(rollout.actor, "RoleLog", lambda name: type("Log", (), {"step": -1})())
    monkeypatch.setattr(rollout.actor.ray, "get", lambda reference: reference)
    model, vae = tiny.save(tmp_path)
    worker = RolloutWorker("rollout-7")
    config = RolloutConfig(group=2)
    worker.setup(PolicySource(str(model), str(vae), 2, 0), config, config, "cpu", 1)
    return worker


def test_work_for_another_version_is_refused(worker):
    batch = small_model.batch(tiny.build(), 1)
    with pytest.raises(WrongVersion, match=r"rollout-7 holds None, step 4 needs PolicyVersion\(merges=0, updates=0\)"):
        worker.sample(batch, 4, version(0))
    worker.sync([], [AdapterWire.pack(worker._policy.adapters.state())], version(0), hashed=False)
    worker.sample(batch, 4, version(0))
    with pytest.raises(WrongVersion):
        worker.sample(batch, 5, version(1))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_after_a_sync_the_hash_is_the_learners(worker, tmp_path, precision):
    """The learner hashes what travels: in bf16 the rounded adapters, while its own stay exact."""
    source = PolicySource(str(tmp_path / "model.safetensors"), str(tmp_path / "vqvae.safetensors"), 2, 0)
    teacher = learner.grpo.actor.LearnerWorker.__new__(learner.grpo.actor.LearnerWorker)
    teacher._policy, teacher._precision = Policy(source, torch.device("cpu")), precision
    exact = {name: torch.randn_like(value) for name, value in teacher._policy.adapters.state().items()}
    teacher._policy.load(exact, version(3))
    wire, known = teacher.weights(True)
    found = worker.sync([], [wire], version(3), hashed=True)
    assert found.fingerprint == known.fingerprint
    assert found.nbytes == sum(value.numel() for value in exact.values()) * (4 if precision == "fp32" else 2)
    assert (teacher._policy.adapters.fingerprint() == known.fingerprint) == (precision == "fp32")
    assert all(torch.equal(value, exact[name]) for name, value in teacher._policy.adapters.state().items())
    other = dict(exact)
    other[next(iter(other))] = other[next(iter(other))] + 1e-3
    assert worker.sync([], [AdapterWire.pack(other)], version(4), hashed=True).fingerprint != known.fingerprint
