"""Metrics reported beside the reward. They are never trained on and do not use the reward's networks."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from reward.luma import luma

_RGB_TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
_WHITE_D65 = (0.95047, 1.0, 1.08883)
_SOBEL = ((-0.125, 0.0, 0.125), (-0.25, 0.0, 0.25), (-0.125, 0.0, 0.125))  # the slope in brightness per pixel
EDGE_SIDE = 40
"""Side in pixels that images are resized to before their edges are compared."""
PSNR_CAP = 100.0
"""The PSNR of identical images; different uint8 images of common sizes are always below."""


def independent_metrics(generated_01: Tensor, target_01: Tensor) -> dict[str, Tensor]:
    """Compare images with their targets, both fp32 [N, 3, H, W] in [0, 1], row by row. Values are fp32 [N].

    "ssim": structural similarity, 11x11 Gaussian window, 1 is best.
    "psnr": in dB, higher is better, capped at 100.
    "color": distance of the colour statistics, 0 is best; see `color_distance`.
    Raises ValueError if the shapes differ; a single target is not broadcast.
    """
    if generated_01.shape != target_01.shape or generated_01.ndim != 4:
        raise ValueError(f"images {list(generated_01.shape)} and targets {list(target_01.shape)} must have one 4-D shape")
    return {
        "ssim": ssim(generated_01, target_01),
        "psnr": psnr(generated_01, target_01),
        "color": color_distance(generated_01, target_01),
    }


def ssim(generated_01: Tensor, target_01: Tensor) -> Tensor:
    """Structural similarity fp32 [N] of images fp32 [N, 3, H, W] in [0, 1] (Wang et al. 2004), 1 is best."""
    # Late: it takes a second to load, and inference measures nothing.
    from torchmetrics.functional.image import structural_similarity_index_measure

    similarity = structural_similarity_index_measure(generated_01, target_01, data_range=1.0, reduction="none")
    return cast(Tensor, similarity).reshape(len(generated_01))


def ssim_map(generated_01: Tensor, target_01: Tensor) -> Tensor:
    """`ssim` of the window around each pixel, fp32 [N, H, W]; its mean is the image's."""
    from torchmetrics.functional.image import structural_similarity_index_measure  # late: see `ssim`

    _, full = structural_similarity_index_measure(
        generated_01, target_01, data_range=1.0, reduction="none", return_full_image=True
    )
    return full.mean(1)


def psnr(generated_01: Tensor, target_01: Tensor) -> Tensor:
    """Peak signal-to-noise ratio fp32 [N] in dB of images fp32 [N, 3, H, W] in [0, 1], capped at `PSNR_CAP`."""
    mse = (generated_01 - target_01).square().mean(dim=(1, 2, 3))
    return (-10 * mse.log10()).clamp(max=PSNR_CAP)


def edge_agreement(generated_01: Tensor, target_01: Tensor) -> Tensor:
    """Correlation fp32 [N], in [-1, 1], of the edges of two images fp32 [N, 3, H, W] in [0, 1]; 1 is best.

    Pearson's correlation of the gradient magnitudes of the brightness at `EDGE_SIDE` pixels (Sobel). It ignores colours
    and almost ignores brush strokes, which are finer. 0 if one of the images has no edges.
    """
    first, second = (_gradient(images).flatten(1) for images in (generated_01, target_01))
    first, second = (values - values.mean(1, keepdim=True) for values in (first, second))
    spread = first.norm(dim=1) * second.norm(dim=1)
    return torch.where(spread > 1e-8, (first * second).sum(1) / spread.clamp(min=1e-8), 0.0)


def _gradient(images_01: Tensor) -> Tensor:
    """Gradient magnitude [N, 1, s, s] of the brightness, in brightness per pixel, s = `EDGE_SIDE`."""
    brightness = luma(images_01)
    small = F.interpolate(brightness, size=(EDGE_SIDE, EDGE_SIDE), mode="area")
    sobel = brightness.new_tensor(_SOBEL)
    right, down = F.conv2d(F.pad(small, (1, 1, 1, 1), mode="replicate"), torch.stack([sobel, sobel.T])[:, None]).unbind(1)
    return (right.square() + down.square() + 1e-12).sqrt().unsqueeze(1)


def color_distance(first_01: Tensor, second_01: Tensor) -> Tensor:
    """Distance fp32 [N] between the per-channel means and deviations of two images' CIELAB colours (D65).

    It is the 2-Wasserstein distance between Gaussians fitted to each channel, in CIELAB units (2.3 is just noticeable
    on a plain patch). It ignores positions, so it measures the palette, and thus the style, not the content.
    """
    first, second = (rgb_to_lab(images).flatten(2) for images in (first_01, second_01))  # [N, 3, H W]
    mean_gap = (first.mean(2) - second.mean(2)).square().sum(1)
    std_gap = (first.std(2, correction=0) - second.std(2, correction=0)).square().sum(1)
    return (mean_gap + std_gap).sqrt()


def rgb_to_lab(images_01: Tensor) -> Tensor:
    """sRGB fp32 [N, 3, H, W] in [0, 1] -> CIELAB [N, 3, H, W], L in [0, 100], a and b roughly in [-110, 110]."""
    linear = torch.where(images_01 <= 0.04045, images_01 / 12.92, ((images_01 + 0.055) / 1.055) ** 2.4)
    xyz = torch.einsum("ij,njhw->nihw", images_01.new_tensor(_RGB_TO_XYZ), linear)
    xyz = xyz / images_01.new_tensor(_WHITE_D65).view(3, 1, 1)
    f = torch.where(xyz > (6 / 29) ** 3, xyz.clamp(min=1e-8) ** (1 / 3), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Inverse of `rgb_to_lab`: CIELAB [N, 3, H, W] -> sRGB in [0, 1]; colours outside sRGB are clamped per channel."""
    y = (lab[:, 0] + 16) / 116
    f = torch.stack((y + lab[:, 1] / 500, y, y - lab[:, 2] / 200), dim=1)
    xyz = torch.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * lab.new_tensor(_WHITE_D65).view(3, 1, 1)
    from_xyz = torch.linalg.inv(torch.tensor(_RGB_TO_XYZ, dtype=torch.float64)).to(lab)
    linear = torch.einsum("ij,njhw->nihw", from_xyz, xyz).clamp(0, 1)
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
