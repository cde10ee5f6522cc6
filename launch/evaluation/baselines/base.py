"""The base class of the classical baselines: one picture per pair, whatever the seed."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Baseline(ABC):
    """A method without randomness: all samples of a pair are the same picture, so `group=1` is enough."""

    name: str
    """Its name in reports."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def samples(self, content_u8: Tensor, style_u8: Tensor, keys: tuple[str, ...], group: int, seed: int) -> Tensor:
        """Contents and styles uint8 [B, 3, H, W] -> uint8 [B, group, 3, H, W], all on CPU; `seed` is ignored.

        Raises ValueError for other types or shapes: a single style is never broadcast.
        """
        if content_u8.dtype != torch.uint8 or style_u8.dtype != torch.uint8 or content_u8.shape != style_u8.shape:
            shapes = [f"{images.dtype} {list(images.shape)}" for images in (content_u8, style_u8)]
            raise ValueError(f"contents and styles must both be uint8 [B, 3, H, W], got {shapes[0]} and {shapes[1]}")
        if content_u8.ndim != 4 or content_u8.shape[1] != 3 or len(keys) != len(content_u8) or group < 1:
            given = f"images {list(content_u8.shape)}, {len(keys)} keys and a group of {group}"
            raise ValueError(f"{given} are not [B, 3, H, W], B keys and a group of at least 1")
        with torch.inference_mode():
            result = self.stylise(content_u8.to(self.device), style_u8.to(self.device)).cpu()
        return result.unsqueeze(1).repeat(1, group, 1, 1, 1)

    @abstractmethod
    def stylise(self, content_u8: Tensor, style_u8: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] twice -> uint8 [B, 3, H, W], all on `device`."""
