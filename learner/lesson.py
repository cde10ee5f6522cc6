"""What goes into a GRPO update and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stylevar.conditions import ConditionState
from stylevar.contracts import StepMetrics, Trajectories
from stylevar.errors import UserError


@dataclass(frozen=True)
class Lesson:
    """Scored trajectories of B conditions, ready to be learned from.

    reference  fp32 [B, G, L]     log-probs under the base weights; for `--kl-estimator full` what the head is given
                                  there, [B, G, L, C]
    rewards    fp32 [B, G]
    detail     [B, G, ...]        of the rewards, where the credit needs one: see `stylevar.contracts.Scores`
    """

    state: ConditionState
    trajectories: Trajectories
    reference: Tensor
    rewards: Tensor
    detail: Tensor | None = None

    def split(self, parts: int) -> list[list[Lesson]]:
        """As minibatches for `GrpoLearner.update`. Raises UserError if B is no multiple of `parts`."""
        conditions = len(self.trajectories.keys)
        if conditions % parts:
            raise UserError(f"--minibatches {parts} does not divide --conditions {conditions}")
        share = conditions // parts
        spans = [slice(at, at + share) for at in range(0, conditions, share)]
        return [[self._select(span)] for span in spans]

    def _select(self, rows: slice) -> Lesson:
        detail = None if self.detail is None else self.detail[rows]
        return Lesson(
            self.state.select(rows), self.trajectories.select(rows), self.reference[rows], self.rewards[rows], detail
        )


@dataclass(frozen=True)
class UpdateResult:
    """What a step did: scalars over all processes; whether any weight changed; and of this process's trajectories,
    in the order they were given, the advantage and the raw KL, fp32 [B, G] on CPU."""

    metrics: StepMetrics
    changed: bool
    advantages: Tensor
    kl: Tensor
