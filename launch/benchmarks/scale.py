"""What distributing a run costs and gains: `python launch/bench.py scale`, on the demo model and CPU actors."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import psutil
import ray
from annotated_types import Ge

from launch.cluster.distributed import DistributedRun
from launch.common.cpus import available_cpus
from launch.common.ray_cluster import join_cluster
from launch.common.text import table
from launch.configs.cluster import ClusterConfig
from launch.configs.grpo import GrpoConfig, demo
from launch.dry_run.plan import Plan
from launch.rl.colocated_actor import ColocatedActor
from launch.rl.worker import Worker
from stylevar.bounds import check_bounds

WARM_UP = 2


@dataclass
class Measured:
    """Of every step: seconds, the driver's share of CPU, and the share that went into syncs."""

    step: list[float] = field(default_factory=list)
    driver: list[float] = field(default_factory=list)
    sync: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Scale:
    """One worker per role against the colocated run, and predicted against measured step times."""

    steps: Annotated[int, Ge(1)] = 4
    """Steps that are timed in each round, after two that are not."""
    rounds: Annotated[int, Ge(1)] = 3
    """How often all cases are gone through: a machine's speed drifts by more than what is to be seen. Medians count."""
    threads: Annotated[int, Ge(1)] = field(default_factory=available_cpus)
    """Threads of the colocated worker, and of each of the distributed ones where they take turns."""
    conditions: Annotated[int, Ge(1)] = 4
    """Conditions per step."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def run(self) -> None:
        alone, pair = ClusterConfig(), ClusterConfig(placement="distributed", unit=self.conditions)
        cases: dict[str, tuple[ClusterConfig, int]] = {
            "colocated": (alone, self.threads),
            "1 + 1 + 1, in turn": (pair, self.threads),
            "1 + 1 + 1, one step ahead": (replace(pair, unit=0, max_staleness=1), 1),
            "2 + 1 + 1": (replace(pair, unit=0, rollout_workers=2), 1),
        }
        measured: dict[str, Measured] = {name: Measured() for name in cases}
        predicted: dict[str, list[float]] = {name: [] for name in cases}
        with TemporaryDirectory(prefix="stylevar-bench-") as runs:
            usual = replace(demo(), runs=Path(runs), conditions=self.conditions, device="cpu", novel=())
            configs = {name: replace(usual, cluster=c, threads=t) for name, (c, t) in cases.items()}
            for number in range(self.rounds):
                for name, config in configs.items():
                    # Before Ray and its actors are there to disturb.
                    predicted[name].append(Plan(config).predict(config)[2].step_seconds)
                    self._measure(config, measured[name])
                    print(f"round {number + 1}, {name}: {measured[name].step[-1]:.2f} s the last step", flush=True)
        rows = []
        for name, config in configs.items():
            found = measured[name]
            step, guess, driver, sync = map(statistics.median, (found.step, predicted[name], found.driver, found.sync))
            times = (f"{step:.2f} s", f"{guess:.2f} s", f"{guess / step - 1:+.0%}")
            rows.append((name, str(config.threads), *times, f"{driver:.1%}", f"{sync:.1%}"))
        header = ("rollout + reward + learner", "threads", "step", "predicted", "off", "driver CPU", "sync")
        print(table(header, rows))
        turn, alone_seconds = (statistics.median(measured[name].step) for name in ("1 + 1 + 1, in turn", "colocated"))
        print(f"distributed over colocated, {self.threads} threads each: {turn / alone_seconds - 1:+.1%}")

    def _measure(self, config: GrpoConfig, into: Measured) -> None:
        there = join_cluster()
        worker: Worker = ColocatedActor(config, there) if config.cluster.placement == "colocated" else DistributedRun()
        process = psutil.Process()
        try:
            worker.setup(replace(config, steps=self.steps + WARM_UP), None)
            for step in range(self.steps + WARM_UP):
                start, cpu = time.perf_counter(), _cpu_seconds(process)
                metrics = worker.step(step).metrics
                seconds = time.perf_counter() - start
                if step >= WARM_UP:
                    into.step.append(seconds)
                    into.driver.append((_cpu_seconds(process) - cpu) / seconds)
                    into.sync.append(metrics.get("sync/seconds", 0.0) / seconds)
        finally:
            worker.close()
            ray.shutdown()


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
