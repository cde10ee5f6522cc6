"""Distances without a network: SSIM, PSNR, edges and colour statistics, inverted where needed so that smaller is better."""

from __future__ import annotations

from torch import Tensor

from reward.base import Embedding, PerceptualDistance
from reward.metrics import PSNR_CAP, color_distance, edge_agreement, psnr, ssim, ssim_map


class _PixelDistance(PerceptualDistance):
    def embed(self, images_01: Tensor) -> Embedding:
        """The images themselves, fp32 [N, 3, H, W] in [0, 1]."""
        return (images_01,)


class SsimDistance(_PixelDistance):
    """1 - structural similarity (Wang et al. 2004), in [0, 2]."""

    name = "ssim"

    def compare(self, first: Embedding, second: Embedding) -> dict[str, Tensor]:
        return {"total": 1 - ssim(second[0], first[0])}

    def compare_cells(self, first: Embedding, second: Embedding) -> Tensor:
        """fp32 [N, H, W]: of each pixel's window."""
        return 1 - ssim_map(second[0], first[0])


class PsnrDistance(_PixelDistance):
    """1 - PSNR / 100 dB, with PSNR capped at 100 dB: 0 for equal images, 0.8 at 20 dB."""

    name = "psnr"

    def compare(self, first: Embedding, second: Embedding) -> dict[str, Tensor]:
        return {"total": 1 - psnr(second[0], first[0]) / PSNR_CAP}


class EdgeDistance(_PixelDistance):
    """1 - `edge_agreement`, in [0, 2]."""

    name = "edges"

    def compare(self, first: Embedding, second: Embedding) -> dict[str, Tensor]:
        return {"total": 1 - edge_agreement(second[0], first[0])}


class ColorDistance(_PixelDistance):
    """`color_distance`, in CIELAB units: tens for different palettes, so give it a small weight."""

    name = "color"

    def compare(self, first: Embedding, second: Embedding) -> dict[str, Tensor]:
        return {"total": color_distance(second[0], first[0])}
