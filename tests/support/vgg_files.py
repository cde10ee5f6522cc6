"""VGG-19 with random weights in its two published forms, built from their descriptions rather than from our own code."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

CONFIG = cfgs["E"][:12]  # VGG-19 up to relu4_1
RELUS = {"vgg19-normalised": (4, 11, 18, 31), "vgg19-torchvision": (2, 7, 12, 21)}
"""How many layers lead to relu1_1, relu2_1, relu3_1 and relu4_1."""


def normalised(seed: int = 0) -> nn.Sequential:
    """The AdaIN authors' network: a 1x1 convolution, then reflected borders and pooling that rounds up."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Conv2d(3, 3, 1)]
    channels = 3
    for width in CONFIG:
        if width == "M":
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
        else:
            layers += [nn.ReflectionPad2d(1), nn.Conv2d(channels, int(width), 3), nn.ReLU()]
            channels = int(width)
    return lively(nn.Sequential(*layers))


def torchvision(seed: int = 0) -> nn.Sequential:
    """torchvision's `features`."""
    torch.manual_seed(seed)
    return lively(make_layers(CONFIG))


def lively(network: nn.Sequential) -> nn.Sequential:
    """Weights with which a signal neither fades nor grows on its way."""
    for layer in network:
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            nn.init.kaiming_normal_(layer.weight)
    return network.requires_grad_(False).eval()


def save(network: nn.Sequential, path: Path, prefix: str = "", **extra: torch.Tensor) -> Path:
    """The network's tensors as a state dict file, keys after `prefix`."""
    torch.save({f"{prefix}{key}": value for key, value in network.state_dict().items()} | extra, path)
    return path
