"""What a placement must offer, and how a step or a run can end early."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from launch.configs.grpo import GrpoConfig
from launch.rl.reports import HeldoutReport, StepReport
from learner.grpo.merging import MergeAction
from stylevar.errors import UserError


class Worker(Protocol):
    """Does the steps of a GRPO run, in one process or many. `setup` comes first, `close` last.

    Any call raises WorkerLost if something is gone that nobody replaces. Those of a distributed worker raise LearnerLost if
    `restart` can bring back what is gone.
    """

    def setup(self, config: GrpoConfig, checkpoint: Path | None) -> dict[str, Any]:
        """Load everything, from `--init` or from a checkpoint, and return facts about the run.

        Raises UserError for anything that a user can set right.
        """
        ...

    def settings(self) -> GrpoConfig:
        """The run's settings, with what they left open as it was chosen by `setup`."""
        ...

    def step(self, step: int) -> StepReport:
        """Sample, score and learn: the GRPO step of this number, counted from 0, which gives its conditions and seeds.

        Raises StepAbandoned if the run is to stop before anything was learned.
        """
        ...

    def evaluate(self, name: str, conditions: int | None = None) -> HeldoutReport:
        """Score `conditions` (all by default) of the held-out set `name` with fixed seeds."""
        ...

    def apply(self, action: MergeAction) -> None:
        """Carry out what the merge controller decided."""
        ...

    def save(self, folder: Path, base: str) -> None:
        """Write all that a run needs to go on into an existing folder; `base` says where its base model lies."""
        ...

    def save_base(self, folder: Path) -> None:
        """Write the base model, without the adapters, into an existing folder."""
        ...

    def save_policy(self, folder: Path) -> None:
        """Write the current policy, adapters baked in, into an existing folder."""
        ...

    def restart(self, checkpoint: Path | None) -> None:
        """Go back to a checkpoint of this run, or to its start, with new learners. Raises LearnerLost if that fails."""
        ...

    def summary(self) -> str:
        """What there is to say about the placement at the end of a run, as lines; may be empty."""
        ...

    def close(self) -> None:
        """End all processes of the placement, whatever state they are in."""
        ...


class StepAbandoned(Exception):
    """A signal came while a step was still being sampled; nothing of it was learned."""


class LearnerLost(RuntimeError):
    """A learner is gone; the group goes on from the last checkpoint only."""


class WorkerLost(UserError):
    """A worker is gone for good, and the run ends. Whoever knows the run's folder adds how to go on."""
