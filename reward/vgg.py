"""Distances in the feature maps of VGG-19 (Simonyan and Zisserman 2015, ImageNet weights of torchvision)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reward.base import Embedding
from reward.weights import NetworkDistance, WeightFile, fill, normalise

VGG19 = WeightFile("vgg19-dcbb9e9d.pth", "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth")
STYLE_LAYERS = (0, 5, 10, 19, 28)
"""conv1_1, conv2_1, conv3_1, conv4_1 and conv5_1 in torchvision's numbering."""
CONTENT_LAYER = 21
"""conv4_2"""
CFSD_LAYER = 11
"""conv3_1 after its ReLU."""


class FeatureMaps(nn.Module):
    """The convolutional part of a torchvision network, up to and including layer `last`."""

    def __init__(self, kind: Literal["vgg16", "vgg19", "alexnet"], last: int) -> None:
        super().__init__()
        import torchvision.models

        self.features = getattr(torchvision.models, kind)(weights=None).features[: last + 1]

    def forward(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Normalised images [N, 3, H, W] -> the outputs of `layers`, before any following ReLU.

        Raises ValueError if the images are too small for the network's pooling layers.
        """
        maps = []
        for number, layer in enumerate(self.features):
            if isinstance(layer, nn.MaxPool2d) and min(images.shape[-2:]) < 2:
                raise ValueError("the images are too small for this network: each side needs at least 32 pixels")
            # torchvision's own ReLUs work in place and would overwrite the requested outputs.
            images = F.relu(images) if isinstance(layer, nn.ReLU) else layer(images)
            if number in layers:
                maps.append(images)
        return maps


class _Vgg19Distance(NetworkDistance):
    file = VGG19
    layers: tuple[int, ...]

    def __init__(self) -> None:
        super().__init__()
        self.net = FeatureMaps("vgg19", max(self.layers))

    def load(self, folder: str | Path | None) -> None:
        fill(self.net, self.file.read(folder, self.name), self.file)

    def maps(self, images_01: Tensor) -> list[Tensor]:
        return self.net(normalise(images_01), self.layers)


class StyleDistance(_Vgg19Distance):
    """Style loss of Gatys et al. 2016: mean squared difference of Gram matrices, summed over five layers.

    A Gram matrix is F F^T / (C H W) of the convolution's output before ReLU, as in StyleVAR's published evaluation. It
    ignores positions, so it measures texture and palette. Values are around 1e-4: give it a large weight.
    """

    name = "style"
    layers = STYLE_LAYERS

    def embed(self, images_01: Tensor) -> Embedding:
        """fp32 [N, 3, H, W] in [0, 1] -> five Gram matrices [N, C, C]."""
        return tuple(gram_matrix(features) for features in self.maps(images_01))

    def compare(self, first: Embedding, second: Embedding) -> dict[str, Tensor]:
        layers = [(a - b).square().mean((1, 2)) for a, b in zip(first, second, strict=True)]
        return {"total": torch.stack(layers).sum(0)}


class ContentDistance(_Vgg19Distance):
    """Content loss of Gatys et al. 2016: mean squared difference of conv4_2's output, before ReLU."""

    name = "content"
    layers = (CONTENT_LAYER,)

    def embed(self, images_01: Tensor) -> Embedding:
        """fp32 [N, 3, H, W] in [0, 1] -> [N, 512, H / 8, W / 8]."""
        return tuple(self.maps(images_01))

    def compare(self, first: Embedding, second: Embedding) -> dict[str, Tensor]:
        return {"total": (first[0] - second[0]).square().mean((1, 2, 3))}

    def compare_cells(self, first: Embedding, second: Embedding) -> Tensor:
        """fp32 [N, H / 8, W / 8]."""
        return (first[0] - second[0]).square().mean(1)


class CfsdDistance(_Vgg19Distance):
    """Content feature structural distance (Chung et al. 2024, "Style Injection in Diffusion").

    Row i of S(x) is the softmax over all patches j of f_i . f_j / C^2, with f the features after conv3_1 and its ReLU.
    The distance is KL(S(content) || S(generated)), summed over the rows as in the authors' evaluation program; the
    paper's formula has a mean. It grows with the number of patches, so compare only images of the same size.
    """

    name = "cfsd"
    layers = (CFSD_LAYER,)

    def embed(self, images_01: Tensor) -> Embedding:
        """fp32 [N, 3, H, W] in [0, 1] -> features [N, H W / 16, 256]."""
        return (self.maps(images_01)[0].flatten(2).transpose(1, 2),)

    def compare(self, first: Embedding, second: Embedding) -> dict[str, Tensor]:
        # One image at a time: a matrix takes 67 MB at 256 x 256 pixels.
        rows = [_structure_kl(a, b) for a, b in zip(first[0], second[0], strict=True)]
        return {"total": torch.stack(rows)}


def gram_matrix(features: Tensor) -> Tensor:
    """[N, C, H, W] -> F F^T / (C H W), [N, C, C]."""
    n, c, h, w = features.shape
    flat = features.reshape(n, c, h * w)
    return flat @ flat.transpose(1, 2) / (c * h * w)


def _structure_kl(reference: Tensor, generated: Tensor) -> Tensor:
    """Features [P, C] of two images -> the KL between their patch similarities, summed over the patches; a scalar."""
    # The rows are nearly uniform and their logarithms nearly equal, so in fp32 the sum would be mostly rounding.
    log_p, log_q = ((f @ f.T / f.shape[1] ** 2).double().log_softmax(dim=1) for f in (reference, generated))
    return (log_p.exp() * (log_p - log_q)).sum().float()
