"""A profile says for each phase how long it took, how much of that an operation ran, and which ones took longest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launch.benchmarks.profile import Operation, Range, report, write_profile
from launch.run.telemetry import PhaseTimer
from stylevar.errors import UserError

CPU = torch.device("cpu")


def test_operations_belong_to_the_innermost_phase() -> None:
    ranges = [Range("update", 0, 1000), Range("forward", 100, 400), Range("forward", 500, 600), Range("rollout", 2000, 2500)]
    operations = [
        Operation("mm", 150, 200),
        Operation("mm", 550, 40),
        Operation("add", 700, 60),
        Operation("sort", 2100, 500),
        Operation("outside", 1500, 10),
    ]
    lines = report(ranges[::-1], operations).splitlines()
    titles = [line for line in lines if "busy" in line]
    assert titles == ["update: 0.6 ms, busy 10%", "rollout: 0.5 ms, busy 100%", "forward: 0.4 ms, busy 60%"]
    assert [line.split() for line in lines if line.startswith("  mm")] == [["mm", "0.24", "ms", "60%", "2"]]
    assert not any("outside" in line for line in lines)


def test_the_timer_s_phases_are_ranges_of_the_profile(tmp_path: Path) -> None:
    timer, x = PhaseTimer(), torch.ones(64, 64)

    def work() -> None:
        with timer("update"):
            x.exp()
            with timer("forward"):
                x @ x

    write_profile(work, {"update", "forward"}, CPU, tmp_path / "profile.txt")
    update, forward = sorted((tmp_path / "profile.txt").read_text().split("\n\n"), key=lambda part: "aten::mm" in part)
    assert update.startswith("update: ")
    assert forward.startswith("forward: ")
    assert "aten::exp" in update
    assert "aten::exp" not in forward
    with pytest.raises(UserError, match=r"--profile .* cannot be written"):
        write_profile(work, {"update"}, CPU, tmp_path / "missing" / "profile.txt")
