"""How many CPUs a process may use: affinity and cgroups of both versions count, and no config keeps the number."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from grpo_files import config, write_inputs

from launch.common import cpus, device
from launch.common.cpus import available_cpus, cgroup_quota
from launch.prepare import OmniStyle


def lay_out(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),  # a container of v2 sees its own group as the root
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3.0),  # the parents bound, too
        ("0::/a/b\n", {"a/b/cpu.max": "100000 100000\n", "a/cpu.max": "300000 100000\n"}, 1.0),
        ("0::/a\n", {"a/cpu.max": "max 100000\n"}, None),
        ("0::/a\n", {}, None),
        (
            "4:memory:/a\n3:cpu,cpuacct:/a\n0::/\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "200000\n", "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"},
            2.0,
        ),
        # A container of v1 is told the host's path, which is not mounted there.
        ("2:cpu:/docker/1f\n", {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ("2:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("2:cpuset:/\n", {"cpuset/cpu.cfs_quota_us": "50000\n", "cpuset/cpu.cfs_period_us": "100000\n"}, None),
    ],
)
def test_the_quota_of_both_versions(tmp_path: Path, membership: str, files: dict[str, str], quota: float | None) -> None:
    lay_out(tmp_path, files)
    (tmp_path / "membership").write_text(membership)
    assert cgroup_quota(tmp_path / "membership", tmp_path) == quota
    assert cgroup_quota(tmp_path / "nowhere", tmp_path) is None


@pytest.mark.parametrize(("allowed", "quota", "cpus_"), [(8, None, 8), (8, 2.0, 2), (8, 1.5, 2), (8, 0.2, 1), (2, 64.0, 2)])
def test_the_tighter_of_affinity_and_quota_counts(monkeypatch, allowed: int, quota: float | None, cpus_: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(allowed)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(cpus, "cgroup_quota", lambda membership, root: quota)
    assert available_cpus() == cpus_
    assert OmniStyle(Path("corpus"), out=Path("set")).workers == cpus_


def test_threads_that_are_left_open_stay_within_what_is_available(monkeypatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        monkeypatch.setattr(device, "available_cpus", lambda: 3)
        device.set_threads(0)
        assert torch.get_num_threads() == 3
        device.set_threads(2)
        assert torch.get_num_threads() == 2
        device.set_threads(0)  # no more than torch was told otherwise
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_threads_that_are_left_open_are_not_written_down(tmp_path: Path, monkeypatch) -> None:
    """A run that is resumed on another machine takes that machine's CPUs."""
    from launch import grpo
    from launch.configs.grpo import load_config
    from launch.rl import colocated
    from launch.rl.colocated import ColocatedWorker

    (tmp_path / "inputs").mkdir()
    settings = config(write_inputs(tmp_path / "inputs"), tmp_path / "runs", steps=1, threads=0)
    before = torch.get_num_threads()
    monkeypatch.setattr(colocated, "available_cpus", lambda: 3)
    monkeypatch.setattr("launch.cluster.start.start_worker", lambda config, stop: ColocatedWorker())
    try:
        grpo.main(settings, None)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert load_config(tmp_path / "runs" / "run" / "config.yaml").threads == 0
