"""Colour transfer by statistics (Reinhard, Ashikhmin, Gooch, Shirley: Color Transfer between Images, 2001).

Reinhard et al. use l-alpha-beta, the logarithm of cone responses. This implementation uses CIELAB, which is also
decorrelated for natural pictures, perceptually uniform, and finite at black, where the logarithm is not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from launch.evaluation.baselines.base import Baseline
from reward.metrics import lab_to_rgb, rgb_to_lab
from stylevar.images import pm1_to_u8, u8_to_01

FLAT = 1e-4
"""A channel with a smaller deviation, in CIELAB units, has no structure to scale."""


class ColorTransfer(Baseline):
    """The content in the style's colours. Colours outside sRGB are clipped."""

    name = "color-transfer"

    def stylise(self, content_u8: Tensor, style_u8: Tensor) -> Tensor:
        content, style = (rgb_to_lab(u8_to_01(images)) for images in (content_u8, style_u8))
        return pm1_to_u8(lab_to_rgb(match_statistics(content, style)) * 2 - 1)


def match_statistics(content: Tensor, style: Tensor) -> Tensor:
    """fp32 [B, C, H, W] twice -> `content`, each channel scaled and shifted to the style's mean and deviation.

    A flat channel of the content only receives the style's mean.
    """
    (content_std, content_mean), (style_std, style_mean) = (
        torch.std_mean(images, dim=(2, 3), correction=0, keepdim=True) for images in (content, style)
    )
    scale = torch.where(content_std > FLAT, style_std / content_std.clamp(min=FLAT), 0)
    return (content - content_mean) * scale + style_mean
