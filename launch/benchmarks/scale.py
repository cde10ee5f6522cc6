"""What distributing a run costs and gains: `python launch/bench.py scale`, on the demo model and CPU actors."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import ray

from launch.cluster import join_cluster
from launch.colocated_actor import ColocatedActor
from launch.config import GrpoConfig, demo
from launch.distributed import DistributedRun
from launch.placement import ClusterConfig
from launch.plan.report import Plan
from launch.plan.text import table

WARM_UP = 2


@dataclass(frozen=True)
class Measured:
    """Medians over the steps of a run: seconds, the driver's share of CPU, and the share that went into syncs."""

    step: float
    driver: float
    sync: float


@dataclass(frozen=True)
class Scale:
    """One worker per role against the colocated run, and predicted against measured step times."""

    steps: int = 8
    """Steps that are timed, after two that are not."""
    threads: int = os.cpu_count() or 1
    """Threads of the colocated worker, and of each of the distributed ones where they take turns."""
    conditions: int = 4
    """Conditions per step."""

    def run(self) -> None:
        alone, pair = ClusterConfig(), ClusterConfig(placement="distributed")
        cases: dict[str, tuple[ClusterConfig, int]] = {
            "colocated": (alone, self.threads),
            "1 + 1 + 1, in turn": (pair, self.threads),
            "1 + 1 + 1, one step ahead": (replace(pair, max_staleness=1), 1),
            "2 + 1 + 1": (replace(pair, rollout_workers=2), 1),
        }
        rows = []
        measured: dict[str, Measured] = {}
        with TemporaryDirectory(prefix="stylevar-bench-") as runs:
            usual = replace(demo(), runs=Path(runs), conditions=self.conditions, device="cpu", novel=None)
            configs = {name: replace(usual, cluster=c, threads=t) for name, (c, t) in cases.items()}
            # Before Ray and its actors are there to disturb.
            predicted = {name: Plan(config).predict(config)[2].step_seconds for name, config in configs.items()}
            for name, config in configs.items():
                measured[name] = found = self._measure(config)
                off = predicted[name] / found.step - 1
                times = (f"{found.step:.2f} s", f"{predicted[name]:.2f} s", f"{off:+.0%}")
                rows.append((name, str(config.threads), *times, f"{found.driver:.1%}", f"{found.sync:.1%}"))
                print(f"{name}: {found.step:.2f} s a step", flush=True)
        header = ("rollout + reward + learner", "threads", "step", "predicted", "off", "driver CPU", "sync")
        print(table(header, rows))
        cost = measured["1 + 1 + 1, in turn"].step / measured["colocated"].step - 1
        print(f"distributed over colocated, {self.threads} threads each: {cost:+.1%}")

    def _measure(self, config: GrpoConfig) -> Measured:
        there = join_cluster()
        worker: Any = ColocatedActor(config, there) if config.cluster.placement == "colocated" else DistributedRun()
        steps, driver, sync = [], [], []
        process = psutil.Process()
        try:
            worker.setup(replace(config, steps=self.steps + WARM_UP), None)
            for step in range(self.steps + WARM_UP):
                start, cpu = time.perf_counter(), _cpu_seconds(process)
                metrics = worker.step(step).metrics
                steps.append(time.perf_counter() - start)
                driver.append((_cpu_seconds(process) - cpu) / steps[-1])
                sync.append(metrics.get("sync/seconds", 0.0) / steps[-1])
        finally:
            worker.close()
            ray.shutdown()
        return Measured(*(statistics.median(values[WARM_UP:]) for values in (steps, driver, sync)))


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
