"""What a run reports while it goes: TensorBoard scalars and image grids, trajectory rows in Parquet, time per phase."""

from __future__ import annotations

import json
import re
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from launch.run.event_file import EventFile
from launch.run.host import host_facts
from launch.run.run_folder import RunFolder
from stylevar.atomic import file_aside
from stylevar.contracts import TrajectoryRows

HOST = "run/host"
"""Tag of the text that every start of a run leaves: what it runs on, as JSON."""
_PART = re.compile(r"steps_(\d{8,})_(\d{8,})\.parquet")


class Telemetry:
    """Writer of one run's reports.

    Curves and pictures lie at the number of steps done: those of the first step at 1, scores before training at 0. Rows
    keep their step's own number, counted from 0, which their seeds were made with.

    Resumed with `done` steps done (0 for a new run), it drops all that was reported of later ones, so that the rows of a
    resumed run equal those of a run that was never stopped. For this, `flush` has to come before a checkpoint is
    committed: rows still buffered when a process dies are lost. Whatever is written raises OSError if the disk does not
    take it.
    """

    def __init__(self, run: RunFolder, done: int = 0) -> None:
        self._folder = run.trajectories
        self._rows: list[pa.Table] = []
        self._span: tuple[int, int] | None = None  # first and last buffered step
        _drop_rows_from(self._folder, done)
        # A purge at 0 hides what an earlier attempt reported before its first checkpoint.
        purge = (done + 1 if done else 0) if any(run.tensorboard.iterdir()) else None
        self._events = EventFile(run.tensorboard, purge)
        self._events.text(done, HOST, json.dumps(host_facts()))

    def scalars(self, done: int, values: Mapping[str, float]) -> None:
        """Write {tag: value} at `done` steps."""
        self._events.scalars(done, values)

    def image_grid(self, done: int, tag: str, grid_u8: Tensor) -> None:
        """Write a picture, uint8 [3, H, W], at `done` steps."""
        self._events.image(done, tag, grid_u8)

    def trajectories(self, step: int, rows: TrajectoryRows) -> None:
        """Buffer one row per trajectory of the step with this number; they reach the disk with the next `flush`."""
        self._rows.append(_table(step, rows))
        first = step if self._span is None else self._span[0]
        self._span = first, step

    def flush(self) -> None:
        """Write the buffered rows as one Parquet file, steps_FIRST_LAST.parquet."""
        if self._span is not None:
            with file_aside(_part(self._folder, *self._span)) as aside:
                pq.write_table(pa.concat_tables(self._rows), aside)
            self._rows, self._span = [], None

    def close(self) -> None:
        """Flush, and close the event file."""
        try:
            self.flush()
        finally:
            self._events.close()


def memory(device: torch.device) -> dict[str, float]:
    """This process's memory, and the most it had, in GiB; on a GPU also the most that was allocated there."""
    found = {
        "memory/rss_gib": psutil.Process().memory_info().rss / 2**30,
        "memory/rss_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    if device.type == "cuda":
        found["memory/cuda_peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return found


class PhaseTimer:
    """Seconds per phase: `with timer("rollout"): ...`. A phase entered several times adds up.

    A phase inside another is taken out of the outer one, so that the phases add up to all that was timed.

    synchronize: called at both ends of a phase, for devices that run behind the host (`torch.cuda.synchronize`).
    """

    def __init__(self, synchronize: Callable[[], None] | None = None) -> None:
        self._synchronize = synchronize
        self._seconds: dict[str, float] = {}
        self._inside = 0.0  # seconds of the phases that ended within the one now open

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        outer, self._inside = self._inside, 0.0
        start = self._now()
        try:
            yield
        finally:
            passed = self._now() - start
            self._seconds[phase] = self._seconds.get(phase, 0.0) + passed - self._inside
            self._inside = outer + passed

    def take(self) -> dict[str, float]:
        """{"time/<phase>": seconds} since the last call, which starts all phases at 0 again."""
        taken = {f"time/{phase}": seconds for phase, seconds in self._seconds.items()}
        self._seconds = {}
        return taken

    def _now(self) -> float:
        if self._synchronize is not None:
            self._synchronize()
        return time.perf_counter()


def _table(step: int, rows: TrajectoryRows) -> pa.Table:
    groups, size = rows.rewards.shape
    count = groups * size

    def floats(values: Tensor) -> pa.Array:
        return pa.array(values.reshape(count).tolist(), pa.float32())

    def constant(value: int) -> pa.Array:
        return pa.array([value] * count, pa.int64())

    columns: dict[str, Any] = {
        "step": constant(step),
        "key": pa.array([key for key in rows.keys for _ in range(size)], pa.string()),
        "g": pa.array(list(range(size)) * groups, pa.int32()),
        "reward": floats(rows.rewards),
        **{f"component_{name}": floats(values) for name, values in sorted(rows.components.items())},
        "advantage": floats(rows.advantages),
        "logp": floats(rows.logp),
        "kl": floats(rows.kl),
        "seed": pa.array(rows.seeds.reshape(count).tolist(), pa.int64()),
        "version_merges": constant(rows.version.merges),
        "version_updates": constant(rows.version.updates),
    }
    return pa.table(columns)


def _part(folder: Path, first: int, last: int) -> Path:
    return folder / f"steps_{first:08d}_{last:08d}.parquet"


def _drop_rows_from(folder: Path, step: int) -> None:
    """Remove the rows of `step` and later from all parts."""
    for path in sorted(folder.glob("steps_*.parquet")):
        match = _PART.fullmatch(path.name)
        if match is None or int(match[2]) < step:
            continue
        if int(match[1]) >= step:
            path.unlink()
            continue
        table = pq.read_table(path)
        kept = table.filter(pc.less(table["step"], step))
        # First the content, then the name: cut short in between, no row is lost or doubled.
        with file_aside(path) as aside:
            pq.write_table(kept, aside)
        path.rename(_part(folder, int(match[1]), pc.max(kept["step"]).as_py()))
