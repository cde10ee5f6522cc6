"""Put the results of a pair in order of their rewards."""

from __future__ import annotations

import torch
from torch import Tensor


def order(rewards: Tensor) -> Tensor:
    """Sample numbers int64 [B, G] by rewards [B, G], best first; equal samples keep their order."""
    return rewards.argsort(dim=1, descending=True, stable=True)


def best(images_u8: Tensor, rewards: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best of images uint8 [B, G, 3, S, S], best first, and their rewards [B, count]."""
    chosen = order(rewards)[:, :count]
    rows = torch.arange(len(chosen)).unsqueeze(1)
    return images_u8[rows, chosen], rewards[rows, chosen]
