"""An SFT run in several processes. Ray Train starts them and restarts them when one is lost; each is an `SftRun`."""

from __future__ import annotations

import math
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device

from data.index import index_triplets
from data.patterns import expand_shards
from launch.common.commands import quoted
from launch.common.ray_cluster import join_cluster
from launch.common.stop import StopRequest
from launch.configs.io import as_kept
from launch.configs.sft import PROGRAM, SftConfig
from launch.run.drive import drive
from launch.run.resume import check_steps
from launch.run.run_folder import ResumePoint, RunFolder, find_resume
from launch.run.saving import saving
from launch.supervised.run import SftRun
from learner.parallel import rank_and_world
from stylevar.allocator import keep_freed_memory
from stylevar.errors import UserError

STOP_FILE, ERROR_FILE = ".stop", ".error"
"""Files in the run's folder: the driver's stop request, and a worker's user error, which no restart would fix."""
BETWEEN_LINES = 5.0
"""Seconds between two progress lines."""


def train_parallel(config: SftConfig, point: ResumePoint | None) -> Path | None:
    """`launch.sft.train` in `config.workers` processes, which must all see the run's folder."""
    expand_shards([*config.shards, *config.val_shards])
    config = config.absolute()
    path = Path(config.runs) / config.name if point is None else point.run.resolve()
    if point is None:
        run = RunFolder.create(path, as_kept(config), config.keep_checkpoints)
    else:
        check_steps(point, config.total_steps(len(index_triplets(expand_shards(config.shards)).of_split("train"))))
        run = RunFolder.open(path, config.keep_checkpoints)
        run.rewind(point.step, merges=0)
    for name in (STOP_FILE, ERROR_FILE):
        (path / name).unlink(missing_ok=True)
    own_cluster = not ray.is_initialized()
    try:
        with saving(run, PROGRAM):
            _fit(config, path)
    finally:
        if own_cluster:
            ray.shutdown()
        stopped = (path / STOP_FILE).exists()
        (path / STOP_FILE).unlink(missing_ok=True)
    if (path / ERROR_FILE).exists():
        message = (path / ERROR_FILE).read_text()
        (path / ERROR_FILE).unlink()
        raise UserError(message)
    return None if stopped and not (path / "model").exists() else path / "model"


def _fit(config: SftConfig, path: Path) -> None:
    there = join_cluster(dashboard=True)
    gpu = config.device == "cuda" or (config.device == "auto" and there.get("GPU", 0) >= config.workers)
    if gpu and there.get("GPU", 0) < config.workers:
        raise UserError(f"--workers {config.workers}: the Ray cluster has {there.get('GPU', 0):g} GPUs; give --device cpu")
    cpus = int(there.get("CPU", 0)) // config.workers
    if cpus < 1:
        raise UserError(f"--workers {config.workers}: the Ray cluster has only {there.get('CPU', 0):g} CPUs")
    # Paths on the command line are relative to the user's current folder.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"config": config, "run": str(path), "folder": os.getcwd(), "cpus": cpus},
        scaling_config=ScalingConfig(
            num_workers=config.workers, use_gpu=gpu, resources_per_worker={"CPU": cpus, "GPU": int(gpu)}
        ),
        run_config=RunConfig(
            name="ray_train", storage_path=str(path), failure_config=FailureConfig(max_failures=config.max_restarts)
        ),
    )
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except (RayError, RuntimeError) as error:  # TrainingFailedError is a RuntimeError
            failures.append(error)

    # In another thread, because Ray would handle Ctrl-C itself and abort without a checkpoint. A second Ctrl-C does not
    # wait for this thread.
    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    with StopRequest() as stop:
        thread.start()
        while thread.is_alive():
            thread.join(0.2)
            if stop.requested and not (path / STOP_FILE).exists():
                (path / STOP_FILE).touch()
    if failures and not (path / ERROR_FILE).exists():
        raise UserError(
            f"the run failed more than --max-restarts {config.max_restarts} times, at last with: {_last_line(failures[0])}; "
            f"continue it with {quoted('--resume', path)}"
        ) from failures[0]


def run_worker(settings: dict[str, Any]) -> None:
    """The work of each process, also after a restart: continue from the run's last checkpoint."""
    config: SftConfig = settings["config"]
    path, folder = Path(settings["run"]), Path(settings["folder"])
    if (path / ERROR_FILE).exists():
        return
    if folder.is_dir():
        os.chdir(folder)
    keep_freed_memory()
    torch.set_num_threads(config.threads or settings["cpus"])
    point = find_resume("auto", path.parent, path.name)
    new_bar = _Lines if rank_and_world()[0] == 0 else _NoBar
    try:
        drive(SftRun(config, point, get_device(), new_bar), PROGRAM, _StopFile(path / STOP_FILE))
    except UserError as error:
        # On a full disk this fails too. Ray then tries again, and the driver reports the last error.
        with suppress(OSError):
            (path / ERROR_FILE).write_text(str(error))
        raise


class _StopFile:
    """The driver's stop request, visible to all processes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def requested(self) -> bool:
        return self._path.exists()

    def __enter__(self) -> None:
        """Nothing to do: the driver listens for signals."""

    def __exit__(self, *_: object) -> None:
        pass


class _Lines:
    """Progress as a line every few seconds. Ray forwards a worker's lines, but its bars would take the driver's locks."""

    def __init__(self, done: int, total: int) -> None:
        self._done, self._total, self._about = done, total, "sft"
        self._shown = -math.inf

    def update(self, n: int) -> None:
        self._done += n
        if self._done == self._total or time.monotonic() - self._shown > BETWEEN_LINES:
            print(f"{self._about}: step {self._done} of {self._total}", flush=True)
            self._shown = time.monotonic()

    def set_description(self, desc: str) -> None:
        self._about = desc

    def close(self) -> None:
        pass


class _NoBar:
    def __init__(self, done: int, total: int) -> None:
        pass

    def update(self, n: int) -> None:
        pass

    def set_description(self, desc: str) -> None:
        pass

    def close(self) -> None:
        pass


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
