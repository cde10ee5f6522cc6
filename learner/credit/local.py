"""Local credit: the advantage of a token comes from the reward in its own part of the image.

The reward must be a mean over the cells c of a grid, R = mean_c r(c); no gradient is needed. The window W_t of a token
consists of the cells that its footprint touches, plus one cell on every side. For trajectory g of a group:

    A_t(g) = mean over c in W_t of [ r_g(c) - mean over the other trajectories h of r_h(c) ]

divided by the group's standard deviation with `--adv-norm std`. It replaces the trajectory's advantage in the clipped loss.
The reward outside a token's window is mostly noise for that token, so it is left out, as factored policy gradients leave out
objectives that an action does not influence (Spooner et al., 2021).

If nothing outside W_t depends on token t, the expected update is exactly the policy gradient with each token weighted by
n^2 / |W_t|, the inverse of its window's share of the image. Otherwise the estimate is biased: the decoder may reach further,
and later tokens elsewhere may attend to this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from learner.credit.base import Credit, CreditMethod, CreditOptions
from learner.credit.config import AdvantageNorm
from learner.credit.trajectory import beyond_others, group_advantages, normalise
from learner.lesson import Lesson
from stylevar.contracts import RewardDetail
from stylevar.vqvae import VQVAE


class LocalCredit(CreditMethod):
    """See the module."""

    detail: ClassVar[RewardDetail] = "map"

    def __init__(self, patch_nums: Sequence[int], norm: AdvantageNorm = "std") -> None:
        """`patch_nums`: tokens per side of each scale."""
        self.patch_nums, self.norm = tuple(patch_nums), norm

    @classmethod
    def build(cls, vae: VQVAE, options: CreditOptions) -> LocalCredit:
        """See `CreditMethod.build`."""
        return cls(vae.quantize.patch_nums, options.norm)

    def assign(self, lessons: Sequence[Lesson]) -> list[Credit]:
        """Credit with an advantage for each token."""
        return [self._assign(lesson) for lesson in lessons]

    def _assign(self, lesson: Lesson) -> Credit:
        device = lesson.reference.device
        advantages = group_advantages(lesson.rewards.to(device), self.norm)
        tokens = window_means(beyond_others(self.detail_of(lesson).to(device)), self.patch_nums)
        return Credit(advantages, normalise(tokens, advantages.std, self.norm))


def window_means(maps: Tensor, patch_nums: Sequence[int]) -> Tensor:
    """Means over the window of each token, [..., L], of `maps` [..., n, n]."""
    means = []
    for side in patch_nums:
        window = windows(side, maps.shape[-1]).to(maps)
        means.append((window @ maps @ window.T).flatten(-2))
    return torch.cat(means, dim=-1)


def windows(side: int, cells: int) -> Tensor:
    """Along one axis, the weight of each cell in the mean of each token's window, fp64 [side, cells]; rows add up to 1."""
    token, cell = torch.arange(side)[:, None], torch.arange(cells)
    first = torch.div(token * cells, side, rounding_mode="floor") - 1
    last = torch.div((token + 1) * cells - 1, side, rounding_mode="floor") + 1
    inside = ((first <= cell) & (cell <= last)).double()
    return inside / inside.sum(1, keepdim=True)
