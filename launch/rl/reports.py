"""What a step and a scoring of held-out conditions leave for the driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from launch.common.grids import GridRow, draw_grid, reward_captions
from stylevar.contracts import ConditionBatch, Scores, StepMetrics, TrajectoryRows

HELDOUT_STEP = -1
"""In place of a step's number: held-out trajectories use the same random numbers at every step."""


@dataclass(frozen=True)
class StepReport:
    """What one step leaves for the driver: scalars and one row per trajectory. No images, no tokens."""

    metrics: StepMetrics
    rows: TrajectoryRows


@dataclass(frozen=True)
class HeldoutReport:
    """Scores of held-out conditions: rewards fp32 [B, G], components {name: [B, G]}, and samples of the first few.

    `samples` uint8 [n, G, 3, H, W]; `grid` uint8 [3, H', W'] shows them beside content, style and, if there is one, target.
    """

    keys: tuple[str, ...]
    rewards: Tensor
    components: dict[str, Tensor]
    samples: Tensor
    grid: Tensor


class HeldoutTally:
    """Collects the scores of held-out conditions, and the pictures of the first `shown` of them."""

    def __init__(self, shown: int) -> None:
        self.shown = shown
        self._keys: list[str] = []
        self._scores: list[Scores] = []
        self._rows: list[GridRow] = []

    @property
    def wants_pictures(self) -> bool:
        """Whether `add_pictures` still waits for some."""
        return len(self._rows) < self.shown

    def add(self, keys: Sequence[str], scores: Scores) -> None:
        """Scores of some conditions."""
        self._keys += keys
        components = {name: value.cpu() for name, value in scores.components.items()}
        self._scores.append(Scores(scores.rewards.cpu(), components))

    def add_pictures(self, batch: ConditionBatch, images: Tensor, rewards: Tensor) -> None:
        """The conditions just added, and their samples uint8 [B, G, 3, H, W]."""
        for b in range(min(len(batch), self.shown - len(self._rows))):
            target = None if batch.target is None else batch.target[b].cpu()
            row = GridRow(batch.content[b].cpu(), batch.style[b].cpu(), target, images[b].cpu(), reward_captions(rewards[b]))
            self._rows.append(row)

    def report(self) -> HeldoutReport:
        parts = [scores.components for scores in self._scores]
        return HeldoutReport(
            tuple(self._keys),
            torch.cat([scores.rewards for scores in self._scores]),
            {name: torch.cat([part[name] for part in parts]) for name in parts[0]},
            torch.stack([row.samples for row in self._rows]),
            draw_grid(self._rows),
        )


def step_report(scores: Scores, rows: TrajectoryRows, update: StepMetrics, more: StepMetrics) -> StepReport:
    """One step's scalars: the rewards, what the update said, and `more`."""
    metrics = {
        "reward/mean": float(scores.rewards.mean()),
        **{f"reward/component/{name}": float(value.mean()) for name, value in scores.components.items()},
        **update,
        **more,
    }
    return StepReport(metrics, rows)
