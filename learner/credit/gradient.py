"""Gradient credit: the reward's own gradient estimates the value of every code at each token's position.

This is an all-action policy gradient with a first-order critic. It is related to expected policy gradients (Ciosek and
Whiteson, 2018) and straight-through estimators (Bengio et al., 2013). Let h_t be the codebook vector of token t, e_v that of
code v, pi_t the policy's distribution at t, and q_t = dR/dh_t:

    A_t(v) = Q_t(v) - sum_u pi_t(u) Q_t(u),    Q_t(v) = q_t . e_v - lambda_s / 2 |e_v - h_t|^2
    loss   = - sum_t w_t sum_v pi_theta,t(v) A_t(v),    no gradient through A_t(v)

lambda_s is the curvature of the reward along a token of scale s. Without it, the critic is linear and gives no credit for
lower variance. It is estimated from differences within groups (d: minus the group's mean); both sums are moving averages:

    lambda_s = max(0, - sum dq . dh / sum |dh|^2)

The estimate has almost no sampling noise, but a small bias: it is first order in the change of a code, and it treats later
scales as fixed. It is exact for one scale and a reward that is linear in f_hat, or quadratic with equal curvature in all
directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from learner.credit.base import DECAY, Credit, CreditMethod, CreditOptions
from learner.credit.config import AdvantageNorm
from learner.credit.trajectory import group_advantages
from learner.lesson import Lesson
from learner.parallel import sum_over_ranks
from stylevar.contracts import RewardDetail
from stylevar.logprobs import CodeValues
from stylevar.vqvae import VQVAE


class GradientCredit(CreditMethod):
    """See the module."""

    detail: ClassVar[RewardDetail] = "gradient"

    def __init__(self, vae: VQVAE, norm: AdvantageNorm = "std", curvature: bool = True, at_once: int = 8) -> None:
        """`at_once`: images in the decoder's forward and backward pass together. `norm` is for the reported advantages."""
        self.vae, self.norm, self.at_once = vae, norm, at_once
        self.with_curvature = curvature
        areas = torch.tensor([p * p for p in vae.quantize.patch_nums])
        self._scale_of = torch.arange(len(areas)).repeat_interleave(areas).to(vae.quantize.embedding.weight.device)
        self.sums = torch.zeros(2, len(areas), dtype=torch.float64)
        """Moving averages of - sum dq . dh and sum |dh|^2 per scale, over updates."""

    @classmethod
    def build(cls, vae: VQVAE, options: CreditOptions) -> GradientCredit:
        """See `CreditMethod.build`."""
        return cls(vae, options.norm, options.curvature, options.at_once)

    def assign(self, lessons: Sequence[Lesson]) -> list[Credit]:
        """Credit that holds the value of every code."""
        slopes = [self._slopes(lesson) for lesson in lessons]
        if self.with_curvature:
            self._measure(lessons, slopes)
        curvature = self.curvature().to(self._scale_of.device)[self._scale_of]
        codebook = self.vae.quantize.embedding.weight.detach()
        credits = []
        for lesson, slope in zip(lessons, slopes, strict=True):
            advantages = group_advantages(lesson.rewards.to(slope.device), self.norm)
            credits.append(Credit(advantages, advantages.values[..., None], CodeValues(slope, codebook, curvature)))
        return credits

    def curvature(self) -> Tensor:
        """lambda_s of every scale, fp32 [S]; zeros before the first update and without --credit-curvature."""
        along, spread = self.sums
        return torch.where(spread > 0, (along / spread).clamp_min(0), torch.zeros_like(along)).float()

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sums = state["sums"].clone()

    def _slopes(self, lesson: Lesson) -> Tensor:
        tokens, device = lesson.trajectories.tokens, self._scale_of.device
        gradient = self.detail_of(lesson).flatten(0, 1)
        return token_slopes(self.vae, tokens.flatten(0, 1).to(device), gradient, self.at_once).unflatten(0, tokens.shape[:2])

    def _measure(self, lessons: Sequence[Lesson], slopes: Sequence[Tensor]) -> None:
        """Add the groups of an update, of all processes, to the moving averages."""
        now = torch.zeros_like(self.sums, device=self._scale_of.device)
        for lesson, slope in zip(lessons, slopes, strict=True):
            vectors = self.vae.quantize.embedding(lesson.trajectories.tokens.long().to(slope.device))
            dq, dh = slope - slope.mean(1, keepdim=True), vectors - vectors.mean(1, keepdim=True)
            usable = dq.isfinite().flatten(1).all(1)  # a NaN in one gradient reaches its whole group through the mean
            dq, dh = dq[usable], dh[usable]
            for row, per_token in enumerate((-(dq * dh), dh.square())):
                now[row].index_add_(0, self._scale_of, per_token.sum((0, 1, 3), dtype=torch.float64))
        self.sums = DECAY * self.sums + (1 - DECAY) * sum_over_ranks(now).cpu()


@torch.enable_grad()
def token_slopes(vae: VQVAE, tokens: Tensor, gradient: Tensor, at_once: int) -> Tensor:
    """dR/dh of every token, fp32 [N, L, D], from tokens [N, L] and dR/dimage [N, 3, H, W] for images in [0, 1]."""
    parts = []
    for some, pull in zip(tokens.long().split(at_once), gradient.split(at_once), strict=True):
        vectors = vae.quantize.embedding(some).detach().requires_grad_()
        image = vae.fhat_to_img(vae.quantize.vectors_to_fhat(vectors))  # in [-1, 1], hence the factor 0.5
        parts.append(torch.autograd.grad(image, vectors, 0.5 * pull.to(image))[0])
    return torch.cat(parts)
