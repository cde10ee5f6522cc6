"""Per-action normalisation weighting (PANW, the StyleVAR paper): every scale gets a say, however few tokens it has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def panw_weights(patch_nums: Sequence[int], gamma: float = 0.7) -> Tensor:
    """w_t = (h_k w_k)^-gamma / Z for every token t of scale k; Z makes the sum over all L tokens 1.

    patch_nums: the scales' side lengths (h_k = w_k). Returns fp32 [L], L = sum of their squares, in token order.
    gamma = 0 weighs tokens alike, gamma = 1 weighs scales alike; at the default the 1x1 scale of the full model's ten
    has 0.0337 and a token of its 16x16 scale 256^0.7 = 48.5 times less.
    """
    if not patch_nums or min(patch_nums) < 1:
        raise ValueError(f"patch_nums must be positive side lengths, not {tuple(patch_nums)}")
    areas = torch.tensor([side * side for side in patch_nums])
    per_token = areas.to(torch.float64).pow(-gamma).repeat_interleave(areas)  # [L]
    return (per_token / per_token.sum()).to(torch.float32)
