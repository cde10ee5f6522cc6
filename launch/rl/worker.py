"""The interface of a placement, and the errors that end a step or a run early."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from launch.configs.grpo import GrpoConfig
from learner.grpo.merging import MergeAction
from stylevar.errors import UserError

if TYPE_CHECKING:
    from launch.rl.reports import HeldoutReport, StepReport


class Worker(Protocol):
    """Does the steps of a GRPO run, in one process or many. Call `setup` first and `close` last.

    Any call raises WorkerLost if a process was lost that cannot be replaced. A distributed worker raises LearnerLost if
    `restart` can recover from the loss.
    """

    def setup(self, config: GrpoConfig, checkpoint: Path | None) -> dict[str, Any]:
        """Load everything, from `--init` or from a checkpoint, and return facts about the run.

        Raises UserError for anything that a user can fix.
        """
        ...

    def settings(self) -> GrpoConfig:
        """The run's settings, with the values that `setup` has chosen where they were open."""
        ...

    def step(self, step: int) -> StepReport:
        """Sample, score and learn: one GRPO step. Its number, counted from 0, determines its conditions and seeds.

        Raises StepAbandoned if a stop is requested before anything was learned.
        """
        ...

    def evaluate(self, name: str, conditions: int | None = None) -> HeldoutReport:
        """Score `conditions` (all by default) of the held-out set `name` with fixed seeds."""
        ...

    def apply(self, action: MergeAction) -> None:
        """Carry out what the merge controller decided."""
        ...

    def save(self, folder: Path, base: str) -> None:
        """Write everything that a run needs to continue into an existing folder; `base` names the location of its base."""
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
        """A report about the placement at the end of a run, as lines of text. May be empty."""
        ...

    def close(self) -> None:
        """End all processes of the placement, in whatever state they are."""
        ...


class StepAbandoned(Exception):
    """A signal arrived while a step was still being sampled. The step changed no weights."""


class LearnerLost(RuntimeError):
    """A learner was lost. The group can continue only from the last checkpoint."""


class WorkerLost(UserError):
    """A worker was lost for good, or its node is out of space, and the run ends.

    The caller that knows the run's folder adds the command to continue.
    """
