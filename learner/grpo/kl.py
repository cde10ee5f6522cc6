"""Per-token estimators of KL(pi || ref) from samples of pi (J. Schulman, "Approximating KL Divergence", 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from learner.grpo.config import KlKind

MAX_LOG_RATIO = 10.0
"""Log-ratios are clamped to this magnitude before exp (e^10 = 22,026), so that one outlier token cannot cause overflow."""


def kl_estimate(new: Tensor, ref: Tensor, kind: KlKind = "k3") -> Tensor:
    """One estimate per token, with the shape of `new` and differentiable with respect to it.

    new, ref: log-probs (float, any common shape) of the sampled tokens under pi and under the reference policy. With
    d = new - ref, clamped to +-10 (with zero gradient beyond):

    k3     exp(-d) + d - 1   unbiased, never negative, low variance
    k1     d                 unbiased, either sign
    k2     d^2 / 2           biased, low variance
    paper  exp(d) - d - 1    the StyleVAR paper's published code: k3 with reversed signs. On samples of pi it does not
                             estimate KL(pi || ref), and it grows faster

    `full`, the exact KL over all codes, is not estimated from samples: see `stylevar.logprobs.token_terms`.
    """
    d = (new - ref).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if kind == "k3":
        return torch.expm1(-d) + d
    if kind == "k1":
        return d
    if kind == "k2":
        return 0.5 * d.square()
    if kind == "paper":
        return torch.expm1(d) - d
    raise ValueError(f"unknown KL estimator {kind!r}: one of k3, k1, k2, paper")
