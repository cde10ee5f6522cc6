"""Statistics of images that do not depend on the reward, to detect reward hacking.

They are recorded for every trajectory and for its target, so that a drift away from the targets can be distinguished from
one towards them. docs/report.md explains how to read them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from reward.luma import luma

STATISTICS = ("sharpness", "color_entropy", "edge_density")
"""Statistics of single images; recorded for samples under these names, and for targets with the prefix `TARGET`."""
TARGET = "target_"
DIVERSITY = "diversity"

_LAPLACE = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))
_SOBEL = ((-0.125, 0.0, 0.125), (-0.25, 0.0, 0.25), (-0.125, 0.0, 0.125))  # brightness per pixel, for a ramp
_EDGE = 0.05
_LEVELS = 8
_POOLED = 32


@torch.inference_mode()
def image_statistics(
    generated_u8: Tensor, target_u8: Tensor | None, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """Statistics fp32 [B, G] of groups uint8 [B, G, 3, H, W] and, repeated G times, of targets uint8 [B, 3, H, W].

    Computed on `device`, one group at a time, and returned on the device of the generated images. Keys: those of
    `STATISTICS`, the same with the prefix `target_` if there are targets, and for groups of two or more "diversity": each
    sample's mean distance to the others, whose mean over the group is the mean pairwise distance.
    """
    home, size = generated_u8.device, generated_u8.shape[1]
    rows: list[dict[str, Tensor]] = []
    targets = [None] * len(generated_u8) if target_u8 is None else [own_u8[None] for own_u8 in target_u8]
    for group_u8, own_u8 in zip(generated_u8, targets, strict=True):
        group_u8 = group_u8.to(device or home)
        if own_u8 is None:
            row = of_images(group_u8)
        else:
            row = of_images(torch.cat([group_u8, own_u8.to(device or home)]))
            target = {TARGET + name: value[size:].expand(size) for name, value in row.items()}
            row = {name: value[:size] for name, value in row.items()} | target
        if size > 1:
            row[DIVERSITY] = group_diversity(group_u8)
        rows.append(row)
    return {name: torch.stack([row[name] for row in rows]).to(home) for name in rows[0]}


def of_images(images_u8: Tensor) -> dict[str, Tensor]:
    """Statistics fp32 [N] of images uint8 [N, 3, H, W].

    "sharpness": variance of the Laplacian of the brightness in [0, 1] (Pech-Pacheco et al. 2000).
    "color_entropy": Shannon entropy of the colours in 8 x 8 x 8 equal cells of RGB, in bits, from 0 to 9.
    "edge_density": share of the pixels where the Sobel gradient of the brightness is above 0.05 per pixel.
    """
    luma_01 = luma(images_u8.float() / 255)
    padded = F.pad(luma_01, (1, 1, 1, 1), mode="replicate")
    sobel = luma_01.new_tensor(_SOBEL)
    kernels = torch.stack([luma_01.new_tensor(_LAPLACE), sobel, sobel.T])[:, None]
    laplacian, right, down = F.conv2d(padded, kernels).unbind(1)
    return {
        "sharpness": laplacian.flatten(1).var(1, correction=0),
        "color_entropy": color_entropy(images_u8),
        "edge_density": (torch.hypot(right, down) > _EDGE).float().mean((1, 2)),
    }


def color_entropy(images_u8: Tensor) -> Tensor:
    """Entropy in bits, fp32 [N], of the colour histograms of images uint8 [N, 3, H, W], with 512 equal cells of RGB."""
    red, green, blue = (images_u8.long() * _LEVELS // 256).unbind(1)
    cell = ((red * _LEVELS + green) * _LEVELS + blue).flatten(1)
    each = torch.full((), 1 / cell.shape[1], device=cell.device).expand_as(cell)
    share = torch.zeros(len(cell), _LEVELS**3, device=cell.device).scatter_add_(1, cell, each)
    return torch.special.entr(share).sum(1) / math.log(2)


def group_diversity(group_u8: Tensor) -> Tensor:
    """Mean distance fp32 [G] of each image in a group uint8 [G, 3, H, W], G >= 2, to the others.

    The root mean square difference of values in [0, 1] after averaging images down to at most 32 x 32, which keeps the
    layout but not the grain. 0 means that all samples of a condition are the same picture.
    """
    height, width = (min(_POOLED, n) for n in group_u8.shape[-2:])
    points = F.adaptive_avg_pool2d(group_u8.float() / 255, (height, width)).flatten(1)
    # A matrix product would round away the distances of nearly equal images.
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist") / points.shape[1] ** 0.5
    return distances.sum(1) / (len(group_u8) - 1)
