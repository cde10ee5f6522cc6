"""Loading processes: what they send needs no shared memory, and one that is killed ends the run in one line."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from launch.common.checkout import ROOT
from launch.supervised.data import load_steps, strided
from stylevar.errors import UserError

LARGE = 1 << 20


class InSmallMemory:
    """Micro-batches of a megabyte, made by a process that may not write a file, in /dev/shm or elsewhere, of half of one."""

    per_step = 2

    def __getitem__(self, number: int) -> torch.Tensor:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGE // 2, LARGE // 2))
        return torch.full((LARGE,), number, dtype=torch.uint8)


class Killed:
    """A process that is killed as it makes its first micro-batch."""

    per_step = 1

    def __getitem__(self, number: int) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(1)


def test_batches_of_any_size_arrive_where_shared_memory_is_small():
    steps = list(load_steps(InSmallMemory(), 1, 3, workers=1))
    assert [[int(batch[-1]) for batch in step] for step in steps] == [[2, 3], [4, 5]]
    assert all(len(batch) == LARGE for step in steps for batch in step)


def test_a_killed_loading_process_is_one_line_that_says_how_to_go_on():
    with pytest.raises(UserError) as ended:
        next(load_steps(Killed(), 0, 1, workers=2, lost="continue with THIS"))
    assert str(ended.value).startswith("a loading process was killed, probably because memory ran out")
    assert str(ended.value).endswith("lower --loader-workers (now 2); continue with THIS")


class Numbers:
    """Micro-batches of their own number."""

    per_step = 1

    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.tensor([number])


@pytest.mark.slow
def test_loading_processes_start_where_the_temporary_folder_is_too_long_for_a_socket(tmp_path):
    folder = tmp_path / ("x" * 110)
    folder.mkdir()
    code = "import test_data as test; print(*test.load_steps(test.Numbers(), 3, 5, workers=1))"
    paths = os.pathsep.join([str(Path(__file__).parent), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "TMPDIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[tensor([3])] [tensor([4])]", done.stderr


@pytest.mark.parametrize(("length", "count", "chosen"), [(10, 4, [0, 2, 5, 7]), (3, 8, [0, 1, 2]), (5, 1, [0]), (0, 4, [])])
def test_numbers_at_equal_distances_begin_at_the_first(length: int, count: int, chosen: list[int]) -> None:
    assert strided(length, count) == chosen
