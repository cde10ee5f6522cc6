"""The interface of all methods of credit assignment, and the credit that they return."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from learner.credit.config import AdvantageNorm
from learner.lesson import Lesson
from stylevar.contracts import RewardDetail
from stylevar.logprobs import CodeValues
from stylevar.vqvae import VQVAE

DECAY = 0.9
"""Decay of the moving averages that methods keep across updates."""


@dataclass(frozen=True)
class CreditOptions:
    """Settings of the methods; see `learner.grpo.config.LearnerConfig`. Each method uses those it needs."""

    norm: AdvantageNorm = "std"
    curvature: bool = True
    at_once: int = 8
    middle: int = 0
    eta: float = 1.0


@dataclass(frozen=True)
class Advantages:
    """Advantages of B groups of G trajectories, and the statistics of the rewards behind them.

    values         fp32 [B, G]   mean 0 over each group
    mean, std      fp32 [B]      of the group's rewards; std is the unbiased estimate
    frac_zero_std  in [0, 1]     fraction of groups whose std is below the floor; (almost) nothing is learned from them
    """

    values: Tensor
    mean: Tensor
    std: Tensor
    frac_zero_std: float


@dataclass(frozen=True)
class Credit:
    """The advantages of the tokens of B groups of G trajectories.

    trajectory  `Advantages`         one per trajectory, for reports
    tokens      fp32 [B, G, 1 or L]  the advantage of each sampled token; 1 if all tokens of a trajectory share it
    codes       `CodeValues`         the value of every code at each token's position; if given, it replaces `tokens`
    """

    trajectory: Advantages
    tokens: Tensor
    codes: CodeValues | None = None


class CreditMethod(ABC):
    """Turns scored trajectories into credit. One object lives as long as its learner."""

    detail: ClassVar[RewardDetail] = "none"
    """The additional reward output that the method needs."""

    @classmethod
    @abstractmethod
    def build(cls, vae: VQVAE, options: CreditOptions) -> CreditMethod:
        """The method for images of `vae`."""

    @abstractmethod
    def assign(self, lessons: Sequence[Lesson]) -> list[Credit]:
        """The credit of each lesson of an update. In a process group, every process calls this once per update."""

    def detail_of(self, lesson: Lesson) -> Tensor:
        """The lesson's additional reward output. Raises ValueError if it has none."""
        if lesson.detail is None:
            raise ValueError(f"{type(self).__name__} needs more than rewards: score with detail={self.detail!r}")
        return lesson.detail

    def state_dict(self) -> Mapping[str, Any]:
        """The state that the method keeps across updates: tensors and numbers by name."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`. Raises ValueError if the method keeps no state but is given some."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, but was given {', '.join(state)}")
