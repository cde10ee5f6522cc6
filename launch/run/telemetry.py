"""Reports of a running run: TensorBoard scalars and image grids, trajectory rows in Parquet, time per phase."""

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
from torch.profiler import record_function

from launch.run.event_file import EventFile
from launch.run.host import host_facts
from launch.run.run_folder import RunFolder
from stylevar.atomic import file_aside
from stylevar.contracts import TrajectoryRows
from stylevar.errors import UserError
from stylevar.parquet_files import read_parquet

HOST = "run/host"
"""Tag of the text that every start of a run writes: facts about its machine, as JSON."""
_PART = re.compile(r"steps_(\d{8,})_(\d{8,})\.parquet")


class Telemetry:
    """Writes one run's reports.

    Curves and pictures are plotted at the number of completed steps: the first step at 1, scores before training at 0. Rows
    carry their step's own number, counted from 0, from which their seeds were derived.

    When a run resumes after `done` steps (0 for a new run), reports of later steps are dropped, so that the rows of a
    resumed run equal those of an uninterrupted run; UserError if a file with such rows is damaged. This requires a `flush`
    before each checkpoint, because rows still in the buffer are lost when a process dies. All writing methods raise OSError
    if the disk is full or broken.
    """

    def __init__(self, run: RunFolder, done: int = 0) -> None:
        self._run, self._folder = run, run.trajectories
        self._rows: list[pa.Table] = []
        self._span: tuple[int, int] | None = None  # first and last buffered step
        _drop_rows_from(self._folder, done)
        # A purge at 0 hides what an earlier attempt reported before its first checkpoint.
        purge = (done + 1 if done else 0) if any(run.tensorboard.iterdir()) else None
        self._events = EventFile(run.tensorboard, purge)
        self._events.text(done, HOST, json.dumps(host_facts()))

    def scalars(self, done: int, values: Mapping[str, float]) -> None:
        """Write {tag: value} at `done` completed steps."""
        self._events.scalars(done, values)

    def image_grid(self, done: int, tag: str, grid_u8: Tensor) -> None:
        """Write a picture, uint8 [3, H, W], at `done` completed steps."""
        self._events.image(done, tag, grid_u8)

    def trajectories(self, step: int, rows: TrajectoryRows) -> None:
        """Buffer one row per trajectory of step number `step`. The next `flush` writes them to disk."""
        self._rows.append(_table(step, rows))
        first = step if self._span is None else self._span[0]
        self._span = first, step

    def flush(self) -> None:
        """Write the buffered rows as one Parquet file, steps_FIRST_LAST.parquet."""
        if self._span is not None:
            self._run.check_place()
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
    """This process's current and peak memory in GiB; on a GPU also the peak of its allocated memory."""
    values = {
        "memory/rss_gib": psutil.Process().memory_info().rss / 2**30,
        "memory/rss_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    if device.type == "cuda":
        values["memory/cuda_peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return values


class PhaseTimer:
    """Seconds per phase: `with timer("rollout"): ...`. Repeated phases are summed.

    The time of a nested phase is subtracted from the outer one, so that the phases add up to the total time. In a profile of
    torch.profiler, each phase is a range with its name.

    synchronize: called at the start and end of a phase, for devices that run asynchronously (`torch.cuda.synchronize`).
    """

    def __init__(self, synchronize: Callable[[], None] | None = None) -> None:
        self._synchronize = synchronize
        self._seconds: dict[str, float] = {}
        self._inside = 0.0  # seconds of the phases that ended within the one now open

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        outer, self._inside = self._inside, 0.0
        with record_function(phase):
            start = self._now()
            try:
                yield
            finally:
                passed = self._now() - start
                self._seconds[phase] = self._seconds.get(phase, 0.0) + passed - self._inside
                self._inside = outer + passed

    def take(self) -> dict[str, float]:
        """{"time/<phase>": seconds} since the last call. Resets all phases to 0."""
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
    """Remove the rows of `step` and later steps from all files."""
    for path in sorted(folder.glob("steps_*.parquet")):
        match = _PART.fullmatch(path.name)
        if match is None or int(match[2]) < step:
            continue
        if int(match[1]) >= step:
            path.unlink()
            continue
        try:
            table = read_parquet(path)
        except (OSError, pa.ArrowException) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path} cannot be read ({reason}): remove it to go on without its rows") from error
        kept = table.filter(pc.less(table["step"], step))
        # First the content, then the name: an interruption in between neither loses nor duplicates rows.
        with file_aside(path) as aside:
            pq.write_table(kept, aside)
        path.rename(_part(folder, int(match[1]), pc.max(kept["step"]).as_py()))
