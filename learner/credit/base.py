"""The interface behind which every method of credit assignment stands, and what a method answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from learner.lesson import Lesson
from stylevar.contracts import RewardDetail
from stylevar.logprobs import CodeValues

DECAY = 0.9
"""Of the moving averages that methods keep over the updates."""


@dataclass(frozen=True)
class Advantages:
    """Advantages of B groups of G trajectories, and the statistics of the rewards behind them.

    values         fp32 [B, G]   mean 0 over each group
    mean, std      fp32 [B]      of the group's rewards; std is the unbiased one
    frac_zero_std  in [0, 1]     fraction of groups whose std lies under the floor: they teach (almost) nothing
    """

    values: Tensor
    mean: Tensor
    std: Tensor
    frac_zero_std: float


@dataclass(frozen=True)
class Credit:
    """What the tokens of B groups of G trajectories are credited with.

    trajectory  `Advantages`         per trajectory, as they are reported
    tokens      fp32 [B, G, 1 or L]  the advantage of each sampled token; 1 where all tokens of a trajectory share it
    codes       `CodeValues`         in place of `tokens`: what every code would be worth in each token's place
    """

    trajectory: Advantages
    tokens: Tensor
    codes: CodeValues | None = None


class CreditMethod(ABC):
    """Turns scored trajectories into credit. One object lives as long as its learner."""

    detail: ClassVar[RewardDetail] = "none"
    """What the rewards have to tell beside their values."""

    @abstractmethod
    def assign(self, lessons: Sequence[Lesson]) -> list[Credit]:
        """The credit of each lesson of an update. In a process group every process calls this once per update."""

    def detail_of(self, lesson: Lesson) -> Tensor:
        """What the lesson's rewards tell beside their values. Raises ValueError if they were not asked."""
        if lesson.detail is None:
            raise ValueError(f"{type(self).__name__} needs more than rewards: score with detail={self.detail!r}")
        return lesson.detail

    def state_dict(self) -> Mapping[str, Any]:
        """What the method remembers from one update to the next: tensors and numbers by name."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`. Raises ValueError if a method that remembers nothing is given something."""
        if state:
            raise ValueError(f"{type(self).__name__} remembers nothing, but was given {', '.join(state)}")
