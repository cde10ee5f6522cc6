"""Where the time of each phase goes, operation by operation, as torch.profiler sees it."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from launch.common.text import duration, share, table
from stylevar.atomic import file_aside
from stylevar.errors import UserError

ROWS = 15
"""Operations listed per phase."""
WIDEST = 90
"""Characters of an operation's name that are shown. Kernels can have names of a thousand."""


class Operation(NamedTuple):
    """One run of an operation: an operator of torch on a CPU, a kernel on a GPU. Times in microseconds."""

    name: str
    start: float
    taken: float


class Range(NamedTuple):
    """One run of a phase. Times in microseconds."""

    phase: str
    start: float
    end: float


def write_profile(work: Callable[[], object], phases: Collection[str], device: torch.device, path: Path) -> None:
    """Run `work` once, and write a table of the slowest operations of each of its `phases`, which are profiler ranges.

    Raises UserError if the file cannot be written.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        work()
    ranges, operations = [], []
    for event in profiler.events() or ():
        time, is_kernel = event.time_range, event.device_type == DeviceType.CUDA
        if event.name in phases:  # a GPU repeats them among its kernels
            ranges += [] if is_kernel else [Range(event.name, time.start, time.end)]
        elif is_kernel == on_gpu:
            operations.append(Operation(event.name, time.start, time.elapsed_us() if on_gpu else event.self_cpu_time_total))
    try:
        with file_aside(path) as aside:
            aside.write_text(report(ranges, operations), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--profile {path} cannot be written ({error.strerror}): choose another place") from error


def report(ranges: Sequence[Range], operations: Sequence[Operation]) -> str:
    """Each phase, the longest first: its time, the share of it in which an operation runs, and its slowest operations.

    An operation belongs to the innermost phase in which it starts.
    """
    ranges = sorted(ranges, key=lambda one: (one.start, -one.end))
    starts = [one.start for one in ranges]
    by_phase: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for operation in operations:
        inside = _innermost(ranges, bisect_right(starts, operation.start), operation.start)
        if inside is not None:
            by_phase[inside][operation.name].append(operation.taken)
    passed = _own_time(ranges)
    parts = []
    for phase in sorted(passed, key=lambda phase: -passed[phase]):
        totals = {name: (sum(taken), len(taken)) for name, taken in by_phase[phase].items()}
        busy = sum(total for total, _ in totals.values())
        slowest = sorted(totals.items(), key=lambda item: -item[1][0])[:ROWS]
        rows = [
            (name[:WIDEST], duration(total / 1e6), share(total / passed[phase]), str(count))
            for name, (total, count) in slowest
        ]
        title = f"{phase}: {duration(passed[phase] / 1e6)}, busy {share(busy / passed[phase])}"
        parts.append(f"{title}\n{table(('operation', 'time', 'of phase', 'calls'), rows)}\n")
    return "\n".join(parts)


def _innermost(ranges: Sequence[Range], end: int, moment: float) -> str | None:
    """The phase of the last of `ranges[:end]` that contains `moment`."""
    for one in reversed(ranges[:end]):
        if moment < one.end:
            return one.phase
    return None


def _own_time(ranges: Sequence[Range]) -> dict[str, float]:
    """Microseconds of each phase, without those of the phases inside it."""
    passed: dict[str, float] = defaultdict(float)
    around: list[Range] = []
    for one in ranges:
        while around and around[-1].end <= one.start:
            around.pop()
        passed[one.phase] += one.end - one.start
        if around:
            passed[around[-1].phase] -= one.end - one.start
        around.append(one)
    return dict(passed)
