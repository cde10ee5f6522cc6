"""LPIPS (Zhang et al. 2018), version 0.1, with torchvision's backbones and the linear heads in torchmetrics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from reward.base import Embedding
from reward.cells import to_grid
from reward.vgg import FeatureMaps
from reward.weights import NetworkDistance, WeightFile, fill, normalise, read_tensors

VGG16 = WeightFile("vgg16-397923af.pth", "https://download.pytorch.org/models/vgg16-397923af.pth")
ALEXNET = WeightFile("alexnet-owt-7be5be79.pth", "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth")
# LPIPS's own constants, for images in [-1, 1].
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-10


class LpipsDistance(NetworkDistance):
    """LPIPS on VGG-16: squared differences of unit-length features after five ReLUs, weighted by the learned heads.

    Images are not resized.
    """

    name = "lpips"
    kind: Literal["vgg16", "alexnet"] = "vgg16"
    heads_file = "vgg.pth"
    file = VGG16
    layers: tuple[int, ...] = (3, 8, 15, 22, 29)
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)

    def __init__(self) -> None:
        super().__init__()
        self.net = FeatureMaps(self.kind, max(self.layers))
        self.heads = nn.ParameterList([nn.Parameter(torch.empty(width)) for width in self.widths])

    def load(self, folder: str | Path | None) -> None:
        fill(self.net, self.file.read(folder, self.name), self.file)
        import torchmetrics

        path = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / self.heads_file
        state = read_tensors(path, "install torchmetrics again")
        for i in range(len(self.heads)):
            self.heads[i] = nn.Parameter(state[f"lin{i}.model.1.weight"].flatten().float(), requires_grad=False)

    def embed(self, images_01: Tensor) -> Embedding:
        """fp32 [N, 3, H, W] in [0, 1] -> five maps [N, C, H', W'] of unit length along C."""
        maps = self.net(normalise(2 * images_01 - 1, _SHIFT, _SCALE), self.layers)
        return tuple(m / (m.square().sum(1, keepdim=True).sqrt() + _EPSILON) for m in maps)

    def compare(self, first: Embedding, second: Embedding) -> dict[str, Tensor]:
        return {"total": torch.stack([layer.mean((1, 2)) for layer in self._layers(first, second)]).sum(0)}

    def compare_cells(self, first: Embedding, second: Embedding) -> Tensor:
        """fp32 [N, 16, 16]: the sum of the layers."""
        return torch.stack([to_grid(layer) for layer in self._layers(first, second)]).sum(0)

    def _layers(self, first: Embedding, second: Embedding) -> Iterator[Tensor]:
        """Weighted squared differences of each layer, [N, H', W']."""
        for a, b, head in zip(first, second, self.heads, strict=True):
            yield torch.einsum("nchw,c->nhw", (a - b).square(), head)


class LpipsAlexDistance(LpipsDistance):
    """LPIPS on AlexNet, the content part of ArtFID (Wright and Ommer 2022)."""

    name = "lpips_alex"
    kind = "alexnet"
    heads_file = "alex.pth"
    file = ALEXNET
    layers = (1, 4, 7, 9, 11)
    widths = (64, 192, 384, 256, 256)
