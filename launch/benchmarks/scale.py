"""What distributing a run costs and gains: `python launch/bench.py scale`, on the demo model and CPU actors."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import ray

from launch.benchmarks.config import Scale
from launch.cluster.distributed import DistributedRun
from launch.common.ray_cluster import join_cluster
from launch.common.text import table
from launch.configs.cluster import ClusterConfig
from launch.configs.grpo import GrpoConfig, demo
from launch.dry_run.plan import Plan
from launch.rl.colocated_actor import ColocatedActor
from launch.rl.worker import Worker

WARM_UP = 2


@dataclass
class Measured:
    """For every step: seconds, the driver's CPU share, and the share of time spent on syncs."""

    step: list[float] = field(default_factory=list)
    driver: list[float] = field(default_factory=list)
    sync: list[float] = field(default_factory=list)


def run(bench: Scale) -> None:
    """Measure all cases in turns and print a table. Starts Ray for each."""
    alone, pair = ClusterConfig(), ClusterConfig(placement="distributed", unit=bench.conditions)
    cases: dict[str, tuple[ClusterConfig, int]] = {
        "colocated": (alone, bench.threads),
        "1 + 1 + 1, in turn": (pair, bench.threads),
        "1 + 1 + 1, one step ahead": (replace(pair, unit=0, max_staleness=1), 1),
        "2 + 1 + 1": (replace(pair, unit=0, rollout_workers=2), 1),
    }
    measured: dict[str, Measured] = {name: Measured() for name in cases}
    predicted: dict[str, list[float]] = {name: [] for name in cases}
    with TemporaryDirectory(prefix="stylevar-bench-") as runs:
        usual = replace(demo(), runs=Path(runs), conditions=bench.conditions, device="cpu", novel=())
        configs = {name: replace(usual, cluster=c, threads=t) for name, (c, t) in cases.items()}
        for number in range(bench.rounds):
            for name, config in configs.items():
                # Before Ray and its actors compete for the cores.
                predicted[name].append(Plan(config).predict(config)[2].step_seconds)
                _measure(bench, config, measured[name])
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
    print(f"distributed over colocated, {bench.threads} threads each: {turn / alone_seconds - 1:+.1%}")


def _measure(bench: Scale, config: GrpoConfig, into: Measured) -> None:
    there = join_cluster()
    worker: Worker = ColocatedActor(config, there) if config.cluster.placement == "colocated" else DistributedRun()
    process = psutil.Process()
    try:
        worker.setup(replace(config, steps=bench.steps + WARM_UP), None)
        for step in range(bench.steps + WARM_UP):
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
