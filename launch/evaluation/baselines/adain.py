"""AdaIN (Huang and Belongie: Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization, 2017)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from launch.evaluation.baselines.base import Baseline
from launch.evaluation.baselines.encoders import STRIDE, Encoder
from stylevar.images import pm1_to_u8, u8_to_01

EPSILON = 1e-5
"""Added to variances, so that flat channels do not divide by zero."""


class AdaIN(Baseline):
    """Gives the content's features in an encoder's bottleneck the style's statistics, and decodes them.

    Named "adain" with VGG-19, the paper's encoder, and "adain-lite" with the built-in one.
    """

    def __init__(
        self, encoder: Encoder, decoder: nn.Sequential, alpha: float = 1.0, device: torch.device | str = "cpu"
    ) -> None:
        """`alpha` in [0, 1]: 0 reconstructs the content, 1 is full style (the paper's section 6.4)."""
        super().__init__(device)
        self.name = "adain-lite" if encoder.kind == "lite" else "adain"
        self.encoder, self.decoder, self.alpha = encoder.to(self.device), decoder.to(self.device), alpha

    def stylise(self, content_u8: Tensor, style_u8: Tensor) -> Tensor:
        height, width = content_u8.shape[-2:]
        content, style = (self.encoder(padded(u8_to_01(images))) for images in (content_u8, style_u8))
        images_01 = self.decoder(blend(content, style, self.alpha))
        return pm1_to_u8(images_01[..., :height, :width] * 2 - 1)


def blend(content: Tensor, style: Tensor, alpha: float = 1.0) -> Tensor:
    """Features [N, C, h, w] twice -> alpha AdaIN(content, style) + (1 - alpha) content (the paper's equations 8 and 14)."""
    (content_mean, content_std), (style_mean, style_std) = statistics(content), statistics(style)
    return torch.lerp(content, (content - content_mean) / content_std * style_std + style_mean, alpha)


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """[N, C, h, w] -> mean and deviation of each channel of each picture over its positions, [N, C, 1, 1] each."""
    variance, mean = torch.var_mean(features, dim=(2, 3), correction=0, keepdim=True)
    return mean, (variance + EPSILON).sqrt()


def padded(images: Tensor) -> Tensor:
    """Pad [N, C, H, W] on the right and below by repeating the border, to sides that are multiples of 8, at least 16."""
    down, across = (max(2, math.ceil(side / STRIDE)) * STRIDE - side for side in images.shape[-2:])
    return F.pad(images, (0, across, 0, down), mode="replicate") if down or across else images
