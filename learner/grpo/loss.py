"""The clipped, PANW-weighted policy-gradient loss with a KL penalty (GRPO, Shao et al. 2024; the StyleVAR paper)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.grpo.config import KlKind
from learner.grpo.kl import MAX_LOG_RATIO, kl_estimate


@dataclass(frozen=True)
class LossTerms:
    """Unreduced loss of N trajectories, so that the caller can drop some and accumulate micro-batches before the mean.

    total, policy  fp32 [N]      the loss, and its policy-gradient part; both with gradients
    raw_kl         fp32 [N]      PANW-weighted KL estimate before beta; detached, like all below
    clip_frac      fp32 [N]      fraction of tokens whose gradient the clip removed
    ratio_mean     fp32 [N]      mean, min and max over the tokens of pi_new / pi_old
    ratio_min      fp32 [N]
    ratio_max      fp32 [N]
    kl_tokens      fp32 [N, L]   KL estimate per token, for the report per scale
    """

    total: Tensor
    policy: Tensor
    raw_kl: Tensor
    clip_frac: Tensor
    ratio_mean: Tensor
    ratio_min: Tensor
    ratio_max: Tensor
    kl_tokens: Tensor


def grpo_loss(
    new: Tensor,
    old: Tensor,
    ref: Tensor,
    advantages: Tensor,
    weights: Tensor,
    clip_eps: float = 0.2,
    beta: float = 0.1,
    kl_kind: KlKind = "k3",
    on_policy: bool = False,
    importance: Tensor | None = None,
    kl_tokens: Tensor | None = None,
) -> LossTerms:
    """Per token -min(r A, clip(r, 1 - eps, 1 + eps) A) + beta * KL, weighted and summed over the tokens.

    new, old, ref: fp32 [N, L], log-probs of the sampled tokens under the trained policy (with gradient), the sampling
    policy, and the reference. advantages: fp32 [N], or [N, L] if each token has its own.
    weights: fp32 [L], sum 1 (see `panw_weights`).
    r = exp(new - old), with its logarithm clamped to +-10. `on_policy` means that the tokens come from the current weights.
    Then r = exp(new - stop_gradient(new)), which is exactly 1 with the gradient of the log-prob, and `old` is ignored, so
    rounding differences between sampler and learner never enter the ratio. `importance` fp32 [N, L], without gradient,
    multiplies each token's policy term: a truncated importance weight for samples from older weights. `kl_tokens` fp32
    [N, L], the KL over the whole vocabulary, replaces the estimate, and `ref` is ignored.
    """
    sampled = new.detach() if on_policy else old
    ratio = (new - sampled).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()  # [N, L]
    per_token = advantages if advantages.ndim == 2 else advantages[:, None]
    signal = per_token if importance is None else per_token * importance
    gain = ratio * signal
    clipped_gain = ratio.clamp(1 - clip_eps, 1 + clip_eps) * signal
    policy = -(torch.minimum(gain, clipped_gain) @ weights)  # [N]
    if kl_tokens is None:
        kl_tokens = kl_estimate(new, ref, kl_kind)  # [N, L]
    kl = kl_tokens @ weights  # [N]
    ratio = ratio.detach()
    return LossTerms(
        total=policy + beta * kl,
        policy=policy,
        raw_kl=kl.detach(),
        clip_frac=(clipped_gain < gain).float().mean(dim=1),
        ratio_mean=ratio.mean(dim=1),
        ratio_min=ratio.amin(dim=1),
        ratio_max=ratio.amax(dim=1),
        kl_tokens=kl_tokens.detach(),
    )


def code_loss(gain: Tensor, kl_tokens: Tensor, weights: Tensor, beta: float = 0.1) -> LossTerms:
    """Per token -gain + beta * KL, weighted and summed over the tokens: the loss if every code has its own advantage.

    gain fp32 [N, L]: sum over the codes v of pi(v) A(v), with constant A(v) (`stylevar.logprobs.TokenTerms`). It is an
    expectation under the trained policy, so there is no ratio to clip; samples from older weights only change the
    prefixes. kl_tokens: fp32 [N, L]. weights: fp32 [L].
    """
    policy, kl = -(gain @ weights), kl_tokens @ weights
    ones = torch.ones_like(kl.detach())
    return LossTerms(policy + beta * kl, policy, kl.detach(), 0 * ones, ones, ones, ones, kl_tokens.detach())
