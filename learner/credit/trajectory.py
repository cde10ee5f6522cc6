"""Group-relative advantages (GRPO, Shao et al. 2024): each trajectory is compared with the others of its condition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learner.credit.base import Advantages, Credit, CreditMethod, CreditOptions
from learner.credit.config import AdvantageNorm
from learner.lesson import Lesson
from stylevar.errors import UserError
from stylevar.vqvae import VQVAE

STD_FLOOR = 1e-2


class TrajectoryCredit(CreditMethod):
    """Every token of a trajectory has the trajectory's advantage, as published."""

    def __init__(self, norm: AdvantageNorm = "std") -> None:
        self.norm = norm

    @classmethod
    def build(cls, vae: VQVAE, options: CreditOptions) -> TrajectoryCredit:
        """See `CreditMethod.build`."""
        return cls(options.norm)

    def assign(self, lessons: Sequence[Lesson]) -> list[Credit]:
        """See `group_advantages`."""
        advantages = [group_advantages(lesson.rewards.to(lesson.reference.device), self.norm) for lesson in lessons]
        return [Credit(some, some.values[..., None]) for some in advantages]


@torch.no_grad()
def group_advantages(rewards: Tensor, norm: AdvantageNorm = "std") -> Advantages:
    """A = (R - mean) / max(std, STD_FLOOR) over each group; with norm "none", A = R - mean. With "leave-one-out",
    A = R - mean of the others = G / (G - 1) (R - mean), an unbiased baseline (Kool et al. 2019; Ahmadian et al. 2024).

    rewards: float [B, G], higher is better. The floor keeps a group of (nearly) equal rewards from having its noise
    blown up to unit variance. A reward that is not finite makes its whole group NaN, which the step guard then drops.
    Raises UserError for groups of one, whose unbiased std is undefined.
    """
    if rewards.ndim != 2:
        raise ValueError(f"rewards must be [B, G], not {tuple(rewards.shape)}")
    if rewards.shape[1] < 2:
        raise UserError(
            f"--group {rewards.shape[1]}: advantages compare the trajectories of a group, and their unbiased std "
            "needs at least 2; give --group 2 or more"
        )
    rewards = rewards.to(torch.float32)
    mean = rewards.mean(dim=1)  # [B]
    std = rewards.std(dim=1, correction=1)  # [B]
    values = beyond_others(rewards) if norm == "leave-one-out" else normalise(rewards - mean[:, None], std, norm)
    return Advantages(values, mean, std, (std < STD_FLOOR).float().mean().item())


def normalise(values: Tensor, std: Tensor, norm: AdvantageNorm) -> Tensor:
    """Advantages [B, ...], with norm "std" divided by the floored std [B] of their groups' rewards."""
    if norm != "std":
        return values
    return values / std.clamp_min(STD_FLOOR).view(-1, *[1] * (values.ndim - 1))


def beyond_others(values: Tensor) -> Tensor:
    """`values` [B, G, ...] minus the mean of the other trajectories of the group."""
    group = values.shape[1]
    return (values - values.mean(dim=1, keepdim=True)) * (group / (group - 1))
