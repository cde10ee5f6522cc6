"""Learning-rate schedules."""

from __future__ import annotations

import math
from typing import Literal

RateSchedule = Literal["constant", "cosine", "linear"]


def rate(schedule: RateSchedule, step: int, steps: int, warmup: int = 0, end: float = 0.0) -> float:
    """The learning rate at `step` (0 ... steps - 1) as a share of its peak, in [0, 1].

    It rises over `warmup` steps, then stays constant or decays (cosine or linear) to `end`, a share of the peak.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    left = 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return end + (1 - end) * left
