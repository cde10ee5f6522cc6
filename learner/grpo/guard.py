"""The step guard: which trajectories may teach, and whether enough of them are left for a step at all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GuardDecision:
    """keep: bool [N]. The two counts are of dropped trajectories by reason. `skip_step`: leave weights, optimizer state
    and weight decay untouched this step."""

    keep: Tensor
    dropped_nonfinite: int
    dropped_kl: int
    skip_step: bool

    @property
    def dropped(self) -> int:
        """How many of the N trajectories were dropped, for whatever reason."""
        return self.dropped_nonfinite + self.dropped_kl


@torch.no_grad()
def guard_trajectories(loss: Tensor, raw_kl: Tensor, kl_limit: float = 5.0, max_dropped: float = 0.5) -> GuardDecision:
    """Drop trajectories whose loss or KL is not finite or whose raw KL exceeds `kl_limit`.

    loss, raw_kl: float [N] as in `LossTerms` (total, raw_kl). The step is skipped when more than the fraction
    `max_dropped` is dropped, or nothing is left. A dropped trajectory has to stay out of the backward pass: to multiply
    its loss by zero is not enough, since 0 * NaN is NaN in the gradients.
    """
    finite = torch.isfinite(loss) & torch.isfinite(raw_kl)
    keep = finite & (raw_kl <= kl_limit)
    total, finite_count, kept = loss.numel(), int(finite.sum()), int(keep.sum())
    return GuardDecision(
        keep=keep,
        dropped_nonfinite=total - finite_count,
        dropped_kl=finite_count - kept,
        skip_step=too_few_left(kept, total, max_dropped),
    )


def too_few_left(kept: int, total: int, max_dropped: float = 0.5) -> bool:
    """Whether a step has to be skipped of whose `total` trajectories, in all processes, only `kept` may teach."""
    return kept == 0 or total - kept > max_dropped * total
