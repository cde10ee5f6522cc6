"""Group-relative advantages (GRPO, Shao et al. 2024): a trajectory is judged against the others of its condition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stylevar.errors import UserError

AdvantageNorm = Literal["std", "none"]


@dataclass(frozen=True)
class Advantages:
    """Advantages of B groups of G trajectories.

    values         fp32 [B, G]   mean 0 over each group
    mean, std      fp32 [B]      of the group's rewards; std is the unbiased one
    frac_zero_std  in [0, 1]     fraction of groups whose std lies under the floor: they teach (almost) nothing
    """

    values: Tensor
    mean: Tensor
    std: Tensor
    frac_zero_std: float


@torch.no_grad()
def group_advantages(rewards: Tensor, norm: AdvantageNorm = "std", std_floor: float = 1e-2) -> Advantages:
    """A = (R - mean) / max(std, std_floor) over each group; with norm "none", A = R - mean.

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
    values = rewards - mean[:, None]
    if norm == "std":
        values = values / std.clamp_min(std_floor)[:, None]
    return Advantages(values, mean, std, (std < std_floor).float().mean().item())
