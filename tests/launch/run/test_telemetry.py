from __future__ import annotations

import errno
import os
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launch.run.run_folder import RunFolder
from launch.run.telemetry import PhaseTimer, Telemetry
from stylevar.contracts import PolicyVersion, TrajectoryRows
from stylevar.errors import UserError


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", {})


def rows(step: int) -> TrajectoryRows:
    values = torch.arange(6, dtype=torch.float32).view(2, 3) + 10 * step
    return TrajectoryRows(
        keys=("a", "b"),
        rewards=-values,
        components={"dreamsim": values / 5, "pixel": values / 7},
        advantages=values * 2,
        logp=-values * 3,
        kl=values / 100,
        seeds=torch.arange(6).view(2, 3) + 2**40,
        version=PolicyVersion(1, step),
    )


def report(run: RunFolder, first: int, last: int, resume: bool = False, checkpoint_every: int = 4) -> None:
    """Steps first..last-1, flushed before each checkpoint and never closed, as by a process that is killed."""
    telemetry = Telemetry(run, first if resume else 0)
    for step in range(first, last):
        telemetry.scalars(step + 1, {"reward/mean": float(step) + (0.5 if resume else 0.0)})
        telemetry.trajectories(step, rows(step))
        if (step + 1) % checkpoint_every == 0:
            telemetry.flush()


def parts(run: RunFolder) -> list[str]:
    return sorted(path.name for path in run.trajectories.iterdir())


def table(run: RunFolder) -> dict:
    return pq.read_table(run.trajectories).to_pydict()


@pytest.mark.parametrize("damage", ["cut", "claims"])
def test_damaged_rows_of_later_steps_are_one_line(run, damage):
    path = run.trajectories / "steps_00000000_00000005.parquet"
    pq.write_table(pa.table({"step": [0] * (1 if damage == "cut" else 1_000_000)}), path)
    if damage == "cut":
        os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match=r"steps_00000000_00000005.parquet cannot be read .*: remove it to go on"):
        Telemetry(run, 3)


def test_row_layout(run):
    telemetry = Telemetry(run)
    telemetry.trajectories(5, rows(5))
    telemetry.close()
    assert parts(run) == ["steps_00000005_00000005.parquet"]
    columns = table(run)
    assert list(columns) == [
        "step",
        "key",
        "g",
        "reward",
        "component_dreamsim",
        "component_pixel",
        "advantage",
        "logp",
        "kl",
        "seed",
        "version_merges",
        "version_updates",
    ]
    assert columns["key"] == ["a"] * 3 + ["b"] * 3
    assert columns["g"] == [0, 1, 2] * 2
    assert columns["reward"] == [-50.0, -51.0, -52.0, -53.0, -54.0, -55.0]
    assert columns["seed"][-1] == 2**40 + 5
    assert columns["version_merges"][0] == 1
    assert columns["version_updates"][0] == 5


def test_flush_with_nothing_to_write(run):
    telemetry = Telemetry(run)
    telemetry.flush()
    telemetry.close()
    assert parts(run) == []


def test_resumed_rows_equal_the_uninterrupted_ones(run, tmp_path):
    whole = RunFolder.create(tmp_path / "whole", {})
    report(whole, 0, 12)
    report(run, 0, 11)  # killed with steps 8..10 buffered
    report(run, 8, 12, resume=True)
    assert parts(run) == parts(whole)
    assert table(run) == table(whole)


def test_resume_from_an_earlier_checkpoint_drops_what_came_after(run):
    report(run, 0, 12)
    report(run, 4, 8, resume=True)
    assert parts(run) == ["steps_00000000_00000003.parquet", "steps_00000004_00000007.parquet"]


def test_resume_inside_a_part_keeps_its_first_rows(run):
    report(run, 0, 8, checkpoint_every=8)
    Telemetry(run, 5).close()
    assert parts(run) == ["steps_00000000_00000004.parquet"]
    assert sorted(set(table(run)["step"])) == [0, 1, 2, 3, 4]


def test_a_failed_write_leaves_no_part(run, monkeypatch):
    telemetry = Telemetry(run)
    telemetry.trajectories(0, rows(0))

    def fail(table, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", fail)
        with pytest.raises(OSError, match="disk full"):
            telemetry.flush()
    assert parts(run) == []
    telemetry.close()  # the rows were not lost
    assert len(table(run)["step"]) == 6


def events(run: RunFolder) -> EventAccumulator:
    accumulator = EventAccumulator(str(run.tensorboard), size_guidance={"scalars": 0, "images": 0})
    return accumulator.Reload()


def test_scalars_and_resume(run):
    report(run, 0, 11)
    report(run, 8, 12, resume=True)
    scalars = events(run).Scalars("reward/mean")
    assert [event.step for event in scalars] == list(range(1, 13))
    assert [event.value for event in scalars[7:9]] == [7.0, 8.5]


def test_what_was_measured_at_the_checkpoint_is_kept(run):
    telemetry = Telemetry(run)
    for done in (0, 4, 5):
        telemetry.scalars(done, {"heldout": float(done)})
    telemetry.close()
    Telemetry(run, 4).close()
    assert [event.step for event in events(run).Scalars("heldout")] == [0, 4]


def test_restart_before_the_first_checkpoint(run):
    report(run, 0, 3)
    report(run, 0, 2, resume=True)
    assert [event.value for event in events(run).Scalars("reward/mean")] == [0.5, 1.5]


def test_a_clock_that_was_set_back_does_not_turn_the_curve_round(run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 2e9)
        report(run, 0, 11)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 1e9)
        report(run, 8, 12, resume=True)
    scalars = events(run).Scalars("reward/mean")
    assert [event.step for event in scalars] == list(range(1, 13))
    assert [event.value for event in scalars[7:9]] == [7.0, 8.5]


def test_an_event_that_finds_no_room_is_an_error_at_once_and_leaves_no_half(run, monkeypatch):
    """TensorBoard's own writer dies in a thread of its own there, with a traceback."""
    telemetry = Telemetry(run)
    telemetry.scalars(0, {"reward/mean": 1.0})
    write = os.write

    def full(descriptor, data):
        if len(data) > 4:
            return write(descriptor, data[:4])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            telemetry.scalars(1, {"reward/mean": 2.0})
    telemetry.scalars(2, {"reward/mean": 3.0})
    telemetry.close()
    assert [(event.step, event.value) for event in events(run).Scalars("reward/mean")] == [(0, 1.0), (2, 3.0)]


def test_image_grid(run):
    telemetry = Telemetry(run)
    telemetry.image_grid(3, "samples/heldout", torch.zeros(3, 20, 30, dtype=torch.uint8))
    telemetry.close()
    (image,) = events(run).Images("samples/heldout")
    assert (image.step, image.height, image.width) == (3, 20, 30)


def test_phase_timer_adds_up_and_starts_again(monkeypatch):
    clock = iter([0.0, 2.0, 10.0, 13.0, 20.0, 21.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    timer = PhaseTimer()
    with timer("rollout"):
        pass
    with timer("rollout"):
        pass
    with pytest.raises(RuntimeError), timer("update"):
        raise RuntimeError
    assert timer.take() == {"time/rollout": 5.0, "time/update": 1.0}
    assert timer.take() == {}


def test_a_phase_inside_another_is_taken_out_of_it(monkeypatch):
    times = iter([0.0, 1.0, 3.0, 4.0, 8.0, 10.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    timer = PhaseTimer()
    with timer("update"):
        with timer("forward"):
            pass
        with timer("backward"):
            pass
    assert timer.take() == {"time/forward": 2.0, "time/backward": 4.0, "time/update": 4.0}


def test_phase_timer_waits_for_the_device():
    calls = []
    timer = PhaseTimer(lambda: calls.append("sync"))
    with timer("rollout"):
        calls.append("work")
    assert calls == ["sync", "work", "sync"]
