"""What a placement must offer, and how a step can end early."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from launch.rl.reports import HeldoutReport, StepReport
from learner.grpo.merging import MergeAction
from stylevar.errors import UserError


class Worker(Protocol):
    """What the loop needs: `DistributedRun`, `ColocatedWorker`, or the latter behind Ray as a `ColocatedActor`."""

    def step(self, step: int) -> StepReport: ...
    def evaluate(self, name: str, conditions: int | None = None) -> HeldoutReport: ...
    def apply(self, action: MergeAction) -> None: ...
    def save(self, folder: Path, base: str) -> None: ...
    def save_base(self, folder: Path) -> None: ...


class StepAbandoned(Exception):
    """A signal came while a step was still being sampled; nothing of it was learned."""


class LearnerLost(RuntimeError):
    """A learner is gone; the group goes on from the last checkpoint only."""


class WorkerLost(UserError):
    """A worker is gone for good, and the run ends. Whoever knows the run's folder adds how to go on."""
