"""Brightness of colour images."""

from __future__ import annotations

from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""


def luma(images: Tensor) -> Tensor:
    """Floating-point images [..., 3, H, W] -> brightness [..., 1, H, W] in the same range."""
    return (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(-3, keepdim=True)


def grey(images: Tensor) -> Tensor:
    """The brightness of floating-point images [..., 3, H, W] in all three channels."""
    return luma(images).expand_as(images)
