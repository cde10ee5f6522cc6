"""A few schedules of the campaign of faults. `make chaos` tries as many as you like; docs/reliability.md has the numbers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import schedules

CHAOS = Path(__file__).with_name("chaos.py")


def test_a_seed_always_draws_the_same_schedule():
    def operations(part: str) -> int:
        return 10 + len(part)

    drawn = [schedules.local(seed, operations) for seed in range(300)]
    assert drawn == [schedules.local(seed, operations) for seed in range(300)]
    assert {schedule.seed for schedule in drawn} == set(range(300))
    parts = {part for part in schedules.PARTS if any(part in schedule.kind for schedule in drawn)}
    assert parts == set(schedules.PARTS)
    assert [schedules.distributed(seed) for seed in range(99)] == [schedules.distributed(seed) for seed in range(99)]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="the writes of a process are disturbed by a C library")
def test_a_run_that_is_disturbed_ends_as_if_it_had_not_been(tmp_path):
    """One schedule of each kind that a single process can meet."""
    words = ["--seed", 0, "--local", len(schedules.LOCAL), "--ray", 0, "--jobs", 2, "--out", tmp_path / "results.jsonl"]
    ended = subprocess.run([sys.executable, CHAOS, *map(str, words)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
