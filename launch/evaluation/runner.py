"""Run all tasks, in this process or on Ray workers, and save each result as soon as it is ready."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from launch.common.stop import StopRequest
from launch.configs.io import to_plain
from launch.evaluation.columns import Column
from launch.evaluation.conditions import ConditionSet
from launch.evaluation.config import EvalConfig
from launch.evaluation.measure import Evaluator, Part, Task
from launch.evaluation.stylizer import Method
from launch.run.newest_run import RUNS
from launch.run.run_folder import numbered
from stylevar.atomic import ASIDE, file_aside, remove
from stylevar.errors import UserError
from stylevar.hub import followed
from stylevar.text import check_path
from stylevar.text_files import read_record

USUAL = RUNS / "eval"
"""Default folder of the results."""
KEY_BYTES = 200
"""Bytes of a key in a file name, which may have at most 255."""
PARTS, SETTINGS, SAMPLES = "parts", "settings.json", "samples.parquet"


class Stopped(Exception):
    """A signal ended the evaluation early. Its results so far are saved."""


def make_tasks(methods: Sequence[Method], conditions: int, batch: int) -> list[Task]:
    """Tasks for all methods on all conditions, one batch each."""
    starts = range(0, conditions, batch)
    return [
        Task(method, number, tuple(range(start, min(start + batch, conditions))), method is methods[0])
        for method in methods
        for number, start in enumerate(starts)
    ]


class ResultsFolder:
    """The folder of an evaluation: one file per task while it runs, one table at the end."""

    def __init__(
        self, config: EvalConfig, methods: Sequence[Method], columns: Sequence[Column], keys: Sequence[str]
    ) -> None:
        """Open a new folder, or continue an unfinished evaluation with the same settings and weights.

        Raises UserError if the folder holds something else, unless `config.overwrite` is set.
        """
        if config.out is not None:
            check_path(config.out, "--out", utf8=True)
        self._methods = methods
        settings = _settings(config, methods, columns, keys)
        self.path = config.out or USUAL
        try:
            if config.overwrite:
                self._clear()
            elif config.out is None:
                self.path = next(path for path in numbered(USUAL) if _conflict(path, settings) is None)
            if conflict := _conflict(self.path, settings):
                raise UserError(conflict)
            (self.path / PARTS).mkdir(parents=True, exist_ok=True)
            for leftover in (self.path / PARTS).glob(f"{ASIDE}*"):
                remove(leftover)
            with file_aside(self.path / SETTINGS) as aside:
                aside.write_text(json.dumps(settings, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"--out {self.path} cannot be written ({error.strerror}): choose another place") from error

    def missing(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks without results."""
        return [task for task in tasks if not self._file(task).is_file()]

    def save(self, task: Task, part: Part) -> None:
        """Save a task's results. The rows come last, because their file marks the task as complete."""
        folder = self.path / "images" / task.method.name
        if part.pictures:
            folder.mkdir(parents=True, exist_ok=True)
        for key, encoded in part.pictures.items():
            with file_aside(folder / f"{file_name(key)}.png") as aside:
                aside.write_bytes(encoded)
        if part.features:
            with file_aside(self._file(task).with_suffix(".npz")) as aside, aside.open("wb") as file:
                np.savez(file, **part.features)  # type: ignore[arg-type]
        with file_aside(self._file(task)) as aside:
            pq.write_table(pa.table({"method": [task.method.name] * len(part.columns["key"]), **part.columns}), aside)

    def rows(self, tasks: Sequence[Task]) -> pa.Table:
        """The rows of all tasks, which must be complete."""
        with _readable(self.path):
            return pa.concat_tables([pq.read_table(self._file(task)) for task in tasks])

    def features(self, tasks: Sequence[Task], what: str) -> np.ndarray:
        """Inception features [n, D] of some tasks, of their "samples" or "styles"."""
        with _readable(self.path):
            return np.concatenate([np.load(self._file(task).with_suffix(".npz"))[what] for task in tasks])

    def finish(self, rows: pa.Table) -> None:
        """Write the table of all rows, and remove the files of the tasks."""
        with file_aside(self.path / SAMPLES) as aside:
            pq.write_table(rows, aside)
        remove(self.path / PARTS)

    def _file(self, task: Task) -> Path:
        return self.path / PARTS / f"{task.name}.parquet"

    def _clear(self) -> None:
        """Remove only files that an evaluation wrote."""
        if not self.path.is_dir():
            return
        if any(self.path.iterdir()) and not (self.path / SETTINGS).is_file():
            raise UserError(f"--overwrite: {self.path} holds no evaluation and is left untouched; choose another --out")
        for name in (PARTS, "images", SAMPLES, *(f"summary.{end}" for end in ("md", "csv", "json"))):
            remove(self.path / name)
        for picture in self.path.glob("best_worst_*.png"):
            remove(picture)
        remove(self.path / SETTINGS)


def _conflict(folder: Path, settings: dict[str, Any]) -> str | None:
    """Why results cannot be written into a folder; None if they can."""
    if (folder / SAMPLES).exists():
        return f"{folder} already holds results: choose another --out, or replace them with --overwrite"
    started = any((folder / PARTS).glob("*.parquet"))
    if started and read_record(folder / SETTINGS, "choose another --out, or --overwrite it") != settings:
        return f"{folder} was started with other settings or weights: choose another --out, or --overwrite it"
    return None


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Explain an earlier command's results that are damaged."""
    try:
        yield
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, pa.ArrowException) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"results in {folder / PARTS} are damaged ({reason}): start over with --overwrite") from error


def file_name(key: str) -> str:
    """A key as a file name. Different keys give different names."""
    plain = "".join(c if c.isalnum() or c in "._-" else "_" for c in key)[:120]
    plain = plain.encode()[:KEY_BYTES].decode(errors="ignore")
    return plain if plain == key else f"{plain}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def run_all(
    config: EvalConfig,
    conditions: ConditionSet,
    columns: tuple[Column, ...],
    artfid: bool,
    tasks: Sequence[Task],
    save: Callable[[Task, Part], None],
) -> None:
    """Run `tasks` and `save` each result. After a signal, saves the results of running tasks and raises Stopped."""
    if not tasks:
        return
    results, done = (_local if config.workers == 0 else _on_ray), 0
    with StopRequest() as stop, tqdm(total=sum(len(task.rows) for task in tasks), unit="condition") as bar:
        for task, part in results(config, (config, conditions, columns, artfid), tasks, lambda: stop.requested):
            save(task, part)
            bar.set_postfix_str(task.method.name)
            bar.update(len(task.rows))
            done += 1
        if done < len(tasks):
            raise Stopped


Arguments = tuple[EvalConfig, ConditionSet, tuple[Column, ...], bool]


def _local(
    config: EvalConfig, arguments: Arguments, tasks: Sequence[Task], stopped: Callable[[], bool]
) -> Iterator[tuple[Task, Part]]:
    evaluator = Evaluator(*arguments)
    for task in tasks:
        if stopped():
            return
        yield task, evaluator.run(task)


class EvalWorker:
    """An evaluator in an actor's process."""

    def __init__(self, arguments: Arguments, threads: int) -> None:
        torch.set_num_threads(threads)
        self._evaluator = Evaluator(*arguments)

    def run(self, task: Task) -> Part:
        """See `Evaluator.run`."""
        return self._evaluator.run(task)


def _on_ray(
    config: EvalConfig, arguments: Arguments, tasks: Sequence[Task], stopped: Callable[[], bool]
) -> Iterator[tuple[Task, Part]]:
    import ray

    from launch.common.ray_cluster import join_cluster

    ours = not ray.is_initialized()
    there = join_cluster()
    try:
        workers = min(config.workers, len(tasks))
        gpus = 0 if config.device == "cpu" else int(there.get("GPU", 0))
        if config.device == "cuda" and not gpus:
            raise UserError("--device cuda: the cluster has no GPU; give --device cpu, or join another cluster")
        # The same number of workers on each GPU, so that all fit. CPUs are divided as threads and not reserved.
        share = math.floor(1e4 / math.ceil(workers / gpus)) / 1e4 if gpus else 0  # Ray counts ten-thousandths
        kind = ray.remote(EvalWorker).options(num_cpus=0, num_gpus=share, scheduling_strategy="SPREAD")
        threads = max(1, int(there.get("CPU", 1) / workers))
        idle: list[Any] = [kind.remote(arguments, threads) for _ in range(workers)]
        waiting = list(reversed(tasks))
        running: dict[Any, tuple[Any, Task]] = {}
        while running or (waiting and not stopped()):
            while idle and waiting and not stopped():
                worker, task = idle.pop(), waiting.pop()
                running[worker.run.remote(task)] = worker, task
            if not running:
                break
            ready = ray.wait(list(running))[0][0]
            worker, task = running.pop(ready)
            try:
                part = ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, UserError) else error) from None
            except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
                raise UserError(
                    f"a worker ended ({str(error).splitlines()[0]}); run the same command to continue, with fewer "
                    "--workers if memory ran out"
                ) from error
            idle.append(worker)
            yield task, part
    finally:
        if ours:
            ray.shutdown()


def _settings(
    config: EvalConfig, methods: Sequence[Method], columns: Sequence[Column], keys: Sequence[str]
) -> dict[str, Any]:
    """Everything that determines the results, as JSON: settings, methods, columns, conditions, and the weights' files."""
    plain = to_plain(config)
    for name in ("out", "overwrite", "workers", "strict", "compare", "methods", "checkpoint"):
        del plain[name]
    files = [file for method in methods if method.source for file in _weight_files(method.source)]
    return json.loads(
        json.dumps(
            {
                "config": plain,
                "methods": [[m.name, m.baseline, m.source, m.temperature] for m in methods],
                "columns": [column.key for column in columns],
                "conditions": hashlib.sha256("\n".join(keys).encode()).hexdigest(),
                "files": {str(f): [f.stat().st_size, f.stat().st_mtime_ns] for f in files},
            }
        )
    )


def _weight_files(source: str) -> list[Path]:
    """The local files of the model `source`, recorded to detect changes."""
    path = followed(Path(source))
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix in (".safetensors", ".json", ".pth", ".pt"))
    return [path] if path.is_file() else []
