"""The step guard: which trajectories may teach, and whether enough of them are left for a step at all."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def may_teach(loss: Tensor, raw_kl: Tensor, kl_limit: float = 5.0) -> Tensor:
    """Which trajectories stay in the step, bool [N]: their loss and raw KL are finite, and the KL is at most `kl_limit`.

    loss, raw_kl: float [N] as in `LossTerms` (total, raw_kl). A trajectory that is dropped has to stay out of the backward
    pass. Multiplying its loss by zero is not enough, since 0 * NaN is NaN in the gradients.
    """
    return torch.isfinite(loss) & torch.isfinite(raw_kl) & (raw_kl <= kl_limit)


def too_few_left(kept: int, total: int, max_dropped: float = 0.5) -> bool:
    """Whether to skip a step: more than the fraction `max_dropped` of its trajectories is dropped, or nothing is left.

    A skipped step leaves weights, optimizer state and weight decay untouched. `total` counts the trajectories of all
    processes, `kept` those that may teach.
    """
    return kept == 0 or total - kept > max_dropped * total
