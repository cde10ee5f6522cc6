"""Colour transfer by statistics (Reinhard, Ashikhmin, Gooch, Shirley: Color Transfer between Images, 2001).

Reinhard's space is l-alpha-beta, the logarithm of cone responses. Here it is CIELAB: decorrelated for natural pictures too,
perceptually even, and finite at black, where the logarithm is not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from launch.evaluation.baselines.base import Baseline
from reward.metrics import lab_to_rgb, rgb_to_lab
from stylevar.images import pm1_to_u8, u8_to_01

FLAT = 1e-4
"""A channel that deviates less, in CIELAB units, has no structure to stretch."""


class ColorTransfer(Baseline):
    """The content's picture in the style's colours; colours outside sRGB are cut off at its edge."""

    name = "color-transfer"

    def stylise(self, content_u8: Tensor, style_u8: Tensor) -> Tensor:
        content, style = (rgb_to_lab(u8_to_01(images)) for images in (content_u8, style_u8))
        return pm1_to_u8(lab_to_rgb(match_statistics(content, style)) * 2 - 1)


def match_statistics(content: Tensor, style: Tensor) -> Tensor:
    """fp32 [B, C, H, W] twice -> `content`, each channel scaled and shifted to the style's mean and deviation.

    A channel of the content that is flat takes the style's mean alone.
    """
    (content_std, content_mean), (style_std, style_mean) = (
        torch.std_mean(images, dim=(2, 3), correction=0, keepdim=True) for images in (content, style)
    )
    scale = torch.where(content_std > FLAT, style_std / content_std.clamp(min=FLAT), 0)
    return (content - content_mean) * scale + style_mean
