"""The results of a step and of a held-out scoring, as the driver receives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data.conditions import spread
from launch.common.grids import GridRow, draw_grid, reward_captions
from stylevar.contracts import ConditionBatch, Scores, StepMetrics, TrajectoryRows

HELDOUT_STEP = -1
"""Step number of held-out trajectories: they use the same random numbers at every scoring."""


@dataclass(frozen=True)
class StepReport:
    """One step's results: scalars and one row per trajectory. No images, no tokens."""

    metrics: StepMetrics
    rows: TrajectoryRows


@dataclass(frozen=True)
class HeldoutReport:
    """Scores of held-out conditions: rewards fp32 [B, G], components {name: [B, G]}, and samples of a few.

    `samples` uint8 [n, G, 3, H, W] are of the conditions `shown`, which are evenly spaced among `keys`; `grid` uint8
    [3, H', W'] shows them beside content, style and target.
    """

    keys: tuple[str, ...]
    rewards: Tensor
    components: dict[str, Tensor]
    shown: tuple[str, ...]
    samples: Tensor
    grid: Tensor


class HeldoutTally:
    """Collects the scores of held-out conditions, and the pictures of `shown` of them, evenly spaced."""

    def __init__(self, conditions: int, shown: int) -> None:
        """`conditions`: how many will be added."""
        self._shown = spread(conditions, min(shown, conditions))
        self._keys: list[str] = []
        self._scores: list[Scores] = []
        self._rows: list[GridRow] = []

    def add(self, keys: Sequence[str], scores: Scores) -> list[int]:
        """Add the scores of some conditions. Returns which of them `add_pictures` needs, by position among these."""
        start = len(self._keys)
        self._keys += keys
        components = {name: value.cpu() for name, value in scores.components.items()}
        self._scores.append(Scores(scores.rewards.cpu(), components))
        return [at - start for at in self._shown if start <= at < len(self._keys)]

    def add_pictures(self, wanted: Sequence[int], batch: ConditionBatch, images: Tensor, rewards: Tensor) -> None:
        """Add pictures of the `wanted` ones of the conditions just added.

        batch, images uint8 [B, G, 3, H, W] and rewards [B, G] are of all conditions just added.
        """
        for b in wanted:
            content, style, target = (image[b].cpu() for image in (batch.content, batch.style, batch.target))
            self._rows.append(GridRow(content, style, target, images[b].cpu(), reward_captions(rewards[b])))

    def report(self) -> HeldoutReport:
        parts = [scores.components for scores in self._scores]
        return HeldoutReport(
            tuple(self._keys),
            torch.cat([scores.rewards for scores in self._scores]),
            {name: torch.cat([part[name] for part in parts]) for name in parts[0]},
            tuple(self._keys[at] for at in self._shown),
            torch.stack([row.samples for row in self._rows]),
            draw_grid(self._rows),
        )


def step_report(scores: Scores, rows: TrajectoryRows, update: StepMetrics, more: StepMetrics) -> StepReport:
    """A step's report, with the scalars of the rewards, of the `update`, and `more`."""
    metrics = {
        "reward/mean": float(scores.rewards.mean()),
        **{f"reward/component/{name}": float(value.mean()) for name, value in scores.components.items()},
        **update,
        **more,
    }
    return StepReport(metrics, rows)
