"""Value as middle return (VMR): train coarse scales on the soft value of what they lead to, in turns with the fine ones.

The method was published for visual autoregressive models (Sun et al., 2026, arXiv 2601.02256). A trajectory has a prefix s,
its first scales (`--credit-middle`), and a continuation, the rest. With K = 2 continuations of each prefix and a temperature
eta (`--credit-eta`), the soft value of a prefix is

    V(s) = eta log( 1/K sum_k exp( R_k / eta ) )

In three steps of four, a group of G trajectories has G / 2 prefixes with two continuations each. V(s) is then the reward of
the prefix: its tokens get GRPO's advantage among the G / 2 values, and all other tokens get 0. In the fourth step, the whole
group shares one prefix. Then the tokens after it get GRPO's advantage among the G rewards, and those of the prefix get 0.
`stylevar/branching.py` draws these groups.

As published: the value, K = 2, eta = 1, three steps for the prefix to one for the rest, and by default a prefix that ends
with the scale of a quarter of the image's side. The paper does not say how many prefixes a group has, nor how many
continuations the fourth step compares; G / 2 and G are choices made here. Different: the KL penalty covers all tokens in
every step, not only those in training. Left out: mask propagation, which confines the update to the tokens behind a rewarded
region; the rewards here look at the whole image.

V(s) prefers prefixes with uneven continuations, the more so the smaller eta is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from learner.credit.base import Credit, CreditMethod, CreditOptions
from learner.credit.config import AdvantageNorm
from learner.credit.trajectory import group_advantages
from learner.lesson import Lesson
from stylevar.branching import CONTINUATIONS, prefix_tokens, sharing
from stylevar.vqvae import VQVAE


class VmrCredit(CreditMethod):
    """See the module. The seeds of a group tell which of its trajectories share a prefix."""

    def __init__(self, patch_nums: Sequence[int], middle: int = 0, eta: float = 1.0, norm: AdvantageNorm = "std") -> None:
        """`middle`: scales of the prefix, 0 for the default. Raises UserError if no scale is left after them."""
        self.eta, self.norm = eta, norm
        prefix = prefix_tokens(patch_nums, middle)
        self._lengths = (prefix, sum(side * side for side in patch_nums) - prefix)

    @classmethod
    def build(cls, vae: VQVAE, options: CreditOptions) -> VmrCredit:
        """See `CreditMethod.build`."""
        return cls(vae.quantize.patch_nums, options.middle, options.eta, options.norm)

    def assign(self, lessons: Sequence[Lesson]) -> list[Credit]:
        """Credit with an advantage for each token, equal within the prefix and within the rest."""
        return [self._assign(lesson) for lesson in lessons]

    def _assign(self, lesson: Lesson) -> Credit:
        rewards = lesson.rewards.to(lesson.reference.device)
        advantages = group_advantages(rewards, self.norm)
        prefix = rest = torch.zeros_like(advantages.values)
        if sharing(lesson.trajectories.seeds) == CONTINUATIONS:
            compared = group_advantages(soft_values(rewards, self.eta), self.norm)
            prefix = compared.values.repeat_interleave(CONTINUATIONS, dim=1)
        else:
            rest = advantages.values
        parts = zip((prefix, rest), self._lengths, strict=True)
        return Credit(advantages, torch.cat([part[..., None].expand(-1, -1, length) for part, length in parts], dim=-1))


def soft_values(rewards: Tensor, eta: float) -> Tensor:
    """V of the prefixes, [B, G / 2], minus the mean reward of the group. `rewards` are [B, G], neighbours share a prefix."""
    # Centred before the exponential, so that a reward of -inf makes its whole group NaN, as with the other methods.
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    of_prefix = centred.unflatten(1, (-1, CONTINUATIONS)) / eta
    return eta * (of_prefix.logsumexp(-1) - math.log(CONTINUATIONS))
