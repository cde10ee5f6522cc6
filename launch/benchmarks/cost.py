"""What a trajectory costs in steps of different sizes: `python launch/bench.py cost`, on the small model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Literal

from annotated_types import Ge

from launch.benchmarks.model import SMALL
from launch.benchmarks.step import Effort, RandomRewards, build_policy, run_steps, use_threads
from launch.common.cpus import Threads
from launch.common.device import choose_device
from launch.common.text import duration, table
from launch.configs.grpo import GrpoConfig
from launch.configs.shape import ModelShape
from launch.rl.colocated import ColocatedWorker
from learner.grpo.config import LearnerConfig
from rollout.config import RolloutConfig
from stylevar.bounds import check_bounds


@dataclass(frozen=True)
class Cell:
    """One step size; `--json` prints a list of these. Seconds are medians."""

    group: int
    conditions: int
    step_seconds: float
    seconds_per_trajectory: float
    cpu_over_wall: float


@dataclass(frozen=True)
class Cost:
    """Seconds per trajectory by conditions and group size. They fall as a step shares more work."""

    model: ModelShape = SMALL
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(lora_rank=16))
    effort: Effort = field(default_factory=Effort)
    groups: tuple[Annotated[int, Ge(2)], ...] = (2, 4, 8, 16)
    """Trajectories per condition (G), at least 2: a group of one has no advantages."""
    conditions: tuple[Annotated[int, Ge(1)], ...] = (1, 2, 4)
    """Conditions per step (B)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it runs; auto uses a GPU if there is one."""
    threads: Threads = 0
    """CPU threads; 0 for all cores."""
    json: bool = False
    """Print a JSON list instead of a table."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def run(self) -> None:
        cells = self.measure()
        if self.json:
            print(json.dumps([asdict(cell) for cell in cells]))
            return
        rows = []
        for group in self.groups:
            each = (duration(cell.seconds_per_trajectory) for cell in cells if cell.group == group)
            rows.append((str(group), *each))
        print("time per trajectory, by group size (rows) and conditions per step (columns), without a reward")
        print(table(("G", *(f"B = {count}" for count in self.conditions)), rows))
        print(f"CPU time over wall time at least {min(cell.cpu_over_wall for cell in cells):.2f}")

    def measure(self) -> list[Cell]:
        """Steps of every size on one policy, row by row."""
        use_threads(self.threads)
        usual = GrpoConfig(rollout=self.rollout, learner=self.learner, device=self.device)
        policy = build_policy(usual, self.model, choose_device(self.device))
        cells = []
        for group in self.groups:
            for conditions in self.conditions:
                worker = ColocatedWorker()
                config = replace(usual, conditions=conditions, rollout=replace(self.rollout, group=group))
                worker.assemble(config, policy, RandomRewards())
                steps = run_steps(worker, self.effort)
                each = steps.seconds / (conditions * group)
                cells.append(Cell(group, conditions, steps.seconds, each, steps.cpu_over_wall))
        return cells
