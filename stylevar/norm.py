"""Layer norm, its adaptive form, and what surrounds the matrix products of a block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stylevar.fusing import fusible


def layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), eps=1e-6)


@fusible
def modulate(x: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Adaptive layer norm: N(x) (1 + scale) + shift, rounded to `dtype`."""
    return (layer_norm(x) * (1 + scale) + shift).to(dtype)


@fusible
def unit(x: Tensor) -> Tensor:
    """Vectors of length 1 along the last dimension, computed in fp32 and rounded to the dtype of `x`."""
    return F.normalize(x.float(), dim=-1).to(x.dtype)


@fusible
def residual(x: Tensor, gamma: Tensor, branch: Tensor) -> Tensor:
    """x + gamma * branch."""
    return x + gamma * branch
