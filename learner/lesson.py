"""The input and the result of a GRPO update."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stylevar.conditions import ConditionState
from stylevar.contracts import StepMetrics, Trajectories
from stylevar.errors import UserError


@dataclass(frozen=True)
class Lesson:
    """Scored trajectories of B conditions.

    reference  fp32 [B, G, L]  log-probs under the base weights, or for `--kl-estimator full` the head's input under the
                               base weights, [B, G, L, C]
    rewards    fp32 [B, G]
    detail     [B, G, ...]     the additional reward output that the credit needs; see `stylevar.contracts.Scores`
    """

    state: ConditionState
    trajectories: Trajectories
    reference: Tensor
    rewards: Tensor
    detail: Tensor | None = None

    def split(self, parts: int) -> list[list[Lesson]]:
        """Minibatches for `GrpoLearner.update`. Raises UserError if `parts` does not divide B."""
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
    """The result of a step: scalars over all processes, whether any weight changed, and the advantages and raw KLs of this
    process's trajectories in their original order, fp32 [B, G] on CPU."""

    metrics: StepMetrics
    changed: bool
    advantages: Tensor
    kl: Tensor
