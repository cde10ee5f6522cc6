"""Prefix credit: subtract what the unfinished image was already worth before a scale was drawn.

With Phi_k = R(decode(f_hat after scale k)), the reward of the unfinished image, the tokens of scale k of trajectory g have

    A_k(g) = R_g - mean of the others' R - b_k (Phi_{k-1}(g) - mean of the others' Phi_{k-1}),    Phi_0 = 0

divided by the group's standard deviation with `--adv-norm std`. Phi_{k-1} is a baseline that depends on the state
(Greensmith et al., 2004): it is known before the tokens of scale k are drawn, so it changes the variance of the policy
gradient and not its mean. With b_k = 1 it is potential-based shaping (Ng et al., 1999) of the return from scale k on. Here
b_k is the least-squares slope of R on Phi_{k-1} within groups, both sums as moving averages:

    b_k = sum (Phi_{k-1} - mean) (R - mean) / sum (Phi_{k-1} - mean)^2

taken from earlier updates alone, since a slope fitted to the very rewards that it corrects would bias them. The first update
therefore has b = 0, which is GRPO with leave-one-out means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from learner.credit.base import DECAY, Credit, CreditMethod, CreditOptions
from learner.credit.config import AdvantageNorm
from learner.credit.trajectory import beyond_others, group_advantages, normalise
from learner.lesson import Lesson
from learner.parallel import sum_over_ranks
from stylevar.contracts import RewardDetail
from stylevar.vqvae import VQVAE


class PrefixCredit(CreditMethod):
    """See the module."""

    detail: ClassVar[RewardDetail] = "prefixes"

    def __init__(self, vae: VQVAE, norm: AdvantageNorm = "std") -> None:
        self.norm = norm
        self._device = vae.quantize.embedding.weight.device
        self._areas = torch.tensor([p * p for p in vae.quantize.patch_nums], device=self._device)
        self.sums = torch.zeros(2, len(self._areas) - 1, dtype=torch.float64)
        """Moving averages of the slopes' numerators and denominators, for Phi_1 to Phi_{S-1}, over updates."""

    @classmethod
    def build(cls, vae: VQVAE, options: CreditOptions) -> PrefixCredit:
        """See `CreditMethod.build`."""
        return cls(vae, options.norm)

    def assign(self, lessons: Sequence[Lesson]) -> list[Credit]:
        """Credit with an advantage for each token, equal within a scale."""
        slopes = self.slopes().to(self._device)
        credits = [self._assign(lesson, slopes) for lesson in lessons]
        self._measure(lessons)
        return credits

    def slopes(self) -> Tensor:
        """b_k of every scale, fp32 [S]; the first is 0, and so are all before the first update."""
        along, spread = self.sums
        known = torch.where(spread > 0, along / spread, torch.zeros_like(along))
        return torch.cat([torch.zeros(1), known.float()])

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sums = state["sums"].clone()

    def _assign(self, lesson: Lesson, slopes: Tensor) -> Credit:
        rewards, potentials = self._differences(lesson)
        before = torch.cat([torch.zeros_like(rewards), potentials], dim=-1)  # Phi_{k-1} beside each scale k
        advantages = group_advantages(lesson.rewards.to(self._device), self.norm)
        scales = normalise(rewards - slopes.to(before) * before, advantages.std, self.norm)
        return Credit(advantages, scales.repeat_interleave(self._areas, dim=-1))

    def _differences(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """R [B, G, 1] and Phi_1 to Phi_{S-1} [B, G, S - 1], minus the means of the others."""
        rewards, potentials = lesson.rewards.to(self._device), self.detail_of(lesson).to(self._device)
        return beyond_others(rewards)[..., None], beyond_others(potentials[..., :-1])

    def _measure(self, lessons: Sequence[Lesson]) -> None:
        """Add the groups of an update, of all processes, to the moving averages."""
        now = torch.zeros_like(self.sums, device=self._device)
        for lesson in lessons:
            rewards, potentials = (values.double() for values in self._differences(lesson))
            usable = torch.cat([rewards, potentials], dim=-1).isfinite().flatten(1).all(1)
            rewards, potentials = rewards[usable], potentials[usable]
            now += torch.stack([(potentials * rewards).sum((0, 1)), potentials.square().sum((0, 1))])
        self.sums = DECAY * self.sums + (1 - DECAY) * sum_over_ranks(now).cpu()
