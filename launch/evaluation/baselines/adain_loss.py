"""The training loss of an AdaIN decoder (Huang and Belongie 2017, equations 11 to 13)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from launch.evaluation.baselines.adain import blend, statistics
from launch.evaluation.baselines.encoders import Encoder


@dataclass(frozen=True)
class AdaINLoss:
    """Scalars. `total` is content + style_weight * style + identity_weight * identity; only `total` has a gradient."""

    total: Tensor
    content: Tensor
    style: Tensor
    identity: Tensor


def adain_loss(
    encoder: Encoder,
    decoder: nn.Module,
    content_01: Tensor,
    style_01: Tensor,
    style_weight: float,
    identity_weight: float = 0.0,
) -> AdaINLoss:
    """The loss of contents and styles, fp32 [N, 3, H, W] in [0, 1], paired row by row.

    Content: mean squared distance between the decoded picture's bottleneck and the features that were decoded. Style: mean
    squared distances between the decoded picture's and the style's channel means and deviations, summed over the levels.
    Identity: mean absolute pixel distance between a content and its reconstruction with its own statistics. The identity
    loss is not in the paper (Park and Lee, Arbitrary Style Transfer with Style-Attentional Networks, 2019) and is computed
    only if it has a weight.
    """
    with torch.no_grad():
        style_levels, features = encoder.levels(style_01), encoder(content_01)
        target = blend(features, encoder.bottleneck(style_levels))
    levels = encoder.levels(decoder(target))
    content = F.mse_loss(encoder.bottleneck(levels), target)
    gaps = [
        F.mse_loss(ours, theirs)
        for level, style_level in zip(levels, style_levels, strict=True)
        for ours, theirs in zip(statistics(level), statistics(style_level), strict=True)
    ]
    style = torch.stack(gaps).sum()
    identity = F.l1_loss(decoder(features), content_01) if identity_weight else torch.zeros_like(content)
    total = content + style_weight * style + identity_weight * identity
    return AdaINLoss(total, content.detach(), style.detach(), identity.detach())
