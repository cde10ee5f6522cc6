"""Per-action normalisation weighting (PANW, the StyleVAR paper): gives scales with few tokens enough weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def panw_weights(patch_nums: Sequence[int], gamma: float = 0.7) -> Tensor:
    """w_t = (h_k w_k)^-gamma / Z for each token t of scale k; Z normalises the sum over all L tokens to 1.

    patch_nums: the scales' side lengths (h_k = w_k). Returns fp32 [L], L = sum of their squares, in token order.
    gamma = 0 weights all tokens equally, gamma = 1 all scales. At the default, the token of the full model's 1x1 scale
    has weight 0.0337, and a token of its 16x16 scale 256^0.7 = 48.5 times less.
    """
    if not patch_nums or min(patch_nums) < 1:
        raise ValueError(f"patch_nums must be positive side lengths, not {tuple(patch_nums)}")
    areas = torch.tensor([side * side for side in patch_nums])
    per_token = areas.to(torch.float64).pow(-gamma).repeat_interleave(areas)  # [L]
    return (per_token / per_token.sum()).to(torch.float32)
