"""What a trajectory costs in steps of different sizes: `python launch/bench.py cost`, on the small model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

from launch.benchmarks.config import Cost
from launch.benchmarks.step import RandomRewards, build_policy, run_steps, use_threads
from launch.common.device import choose_device
from launch.common.text import duration, table
from launch.configs.grpo import GrpoConfig
from launch.rl.colocated import ColocatedWorker


@dataclass(frozen=True)
class Cell:
    """One step size; `--json` prints a list of these. Seconds are medians."""

    group: int
    conditions: int
    step_seconds: float
    seconds_per_trajectory: float
    cpu_over_wall: float


def run(bench: Cost) -> None:
    """Measure every step size and print the result."""
    cells = measure(bench)
    if bench.json:
        print(json.dumps([asdict(cell) for cell in cells]))
        return
    rows = []
    for group in bench.groups:
        each = (duration(cell.seconds_per_trajectory) for cell in cells if cell.group == group)
        rows.append((str(group), *each))
    print("time per trajectory, by group size (rows) and conditions per step (columns), without a reward")
    print(table(("G", *(f"B = {count}" for count in bench.conditions)), rows))
    print(f"CPU time over wall time at least {min(cell.cpu_over_wall for cell in cells):.2f}")


def measure(bench: Cost) -> list[Cell]:
    """Steps of every size on one policy, row by row."""
    use_threads(bench.threads)
    usual = GrpoConfig(rollout=bench.rollout, learner=bench.learner, device=bench.device)
    policy = build_policy(usual, bench.model, choose_device(bench.device))
    cells = []
    for group in bench.groups:
        for conditions in bench.conditions:
            worker = ColocatedWorker()
            config = replace(usual, conditions=conditions, rollout=replace(bench.rollout, group=group))
            worker.assemble(config, policy, RandomRewards())
            steps = run_steps(worker, bench.effort)
            each = steps.seconds / (conditions * group)
            cells.append(Cell(group, conditions, steps.seconds, each, steps.cpu_over_wall))
    return cells
