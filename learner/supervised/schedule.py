"""The learning rate of every step of an SFT run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

from learner.schedule import rate
from stylevar.bounds import check_bounds


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning-rate schedule. The defaults are the model card's: 5e-4 in epochs 1-6, 1e-4 in 7-10."""

    schedule: Literal["step", "cosine", "linear"] = "step"
    """step: one drop; cosine, linear: decay to --lr-end of the peak. All start with a warm-up."""
    warmup: Annotated[int, Ge(0)] = 100
    """Warm-up steps, over which the learning rate rises to its peak."""
    lr_drop_at: Annotated[float, Ge(0), Le(1)] = 0.6
    """Share of the run after which a step schedule drops."""
    lr_drop: Annotated[float, Ge(0), Le(1)] = 0.2
    """Factor of the drop of a step schedule."""
    lr_end: Annotated[float, Ge(0), Le(1)] = 0.01
    """Learning rate at the end of a cosine or linear schedule, as a share of the peak."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def learning_rate(self, step: int, steps: int, peak: float) -> float:
        """The learning rate at `step` (0 ... steps - 1)."""
        if self.schedule == "step":
            dropped = step >= max(self.warmup, self.lr_drop_at * steps)
            return peak * rate("constant", step, steps, self.warmup) * (self.lr_drop if dropped else 1.0)
        return peak * rate(self.schedule, step, steps, self.warmup, self.lr_end)
