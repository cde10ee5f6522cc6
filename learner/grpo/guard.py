"""The step guard: which trajectories may contribute, and whether enough are left for a step."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def may_teach(loss: Tensor, raw_kl: Tensor, kl_limit: float = 5.0) -> Tensor:
    """Which trajectories to keep, bool [N]: those with a finite loss and raw KL, and a KL of at most `kl_limit`.

    loss, raw_kl: float [N] as in `LossTerms` (total, raw_kl). Dropped trajectories must be excluded from the backward
    pass. Multiplying their loss by zero is not enough, because 0 * NaN is NaN in the gradients.
    """
    return torch.isfinite(loss) & torch.isfinite(raw_kl) & (raw_kl <= kl_limit)


def too_few_left(kept: int, total: int, max_dropped: float = 0.5) -> bool:
    """Whether to skip a step: more than the fraction `max_dropped` of its trajectories is dropped, or none is left.

    A skipped step changes neither weights nor optimizer state and applies no weight decay. `total` counts the
    trajectories of all processes, `kept` those that may contribute.
    """
    return kept == 0 or total - kept > max_dropped * total
