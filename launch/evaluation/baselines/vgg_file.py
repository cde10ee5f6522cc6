"""Read VGG-19 in either of its published forms, which are recognised by the file's contents."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from launch.evaluation.baselines.encoders import VggEncoder
from stylevar.errors import UserError
from stylevar.weight_files import read_file

FILES = "the AdaIN authors' network in PyTorch (vgg_normalised.pth), or torchvision's vgg19"
_LAYER = re.compile(r"(?:features\.)?(\d+)\.(weight|bias|running_mean)")


def load_vgg(path: Path) -> VggEncoder:
    """VGG-19 up to relu4_1 from a .pth or .safetensors file. Later layers are ignored.

    A file that starts with a 1x1 convolution is the "vgg19-normalised" of Huang and Belongie (2017). A file that starts with
    the first 3x3 convolution is assumed to be torchvision's, "vgg19-torchvision". Raises UserError for anything else.
    """
    layers = _numbered(path, read_file(path))
    first = layers[0][1]["weight"]
    encoder = VggEncoder("vgg19-normalised" if first.shape[-1] == 1 else "vgg19-torchvision")
    convolutions = encoder.convolutions
    if len(layers) < len(convolutions):
        raise UserError(f"{path} has {len(layers)} convolutions and VGG-19 {len(convolutions)} up to relu4_1: give {FILES}")
    for (number, tensors), layer in zip(layers, convolutions, strict=False):
        for name, own in (("weight", layer.weight), ("bias", layer.bias)):
            assert own is not None
            if name not in tensors or tensors[name].shape != own.shape:
                has = f"is {list(tensors[name].shape)}" if name in tensors else "is missing"
                raise UserError(
                    f"{path} is not VGG-19: the {name} of its layer {number} {has}, not {list(own.shape)}: give {FILES}"
                )
            with torch.no_grad():
                own.copy_(tensors[name])
    return encoder


def _numbered(path: Path, content: object) -> list[tuple[int, dict[str, Tensor]]]:
    """The convolutions of the file with their layer numbers, in order."""
    layers: dict[int, dict[str, Tensor]] = {}
    for key, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, Tensor) and (match := _LAYER.fullmatch(str(key))):
            layers.setdefault(int(match[1]), {})[match[2]] = value
    if any("running_mean" in layer for layer in layers.values()):
        raise UserError(f"{path} has batch normalisation (vgg19_bn?), which AdaIN does not support: give {FILES}")
    weighted = [(number, layer) for number, layer in sorted(layers.items()) if "weight" in layer]
    if not weighted or weighted[0][1]["weight"].ndim != 4:
        keys = ", ".join(str(key) for key in list(content)[:3]) if isinstance(content, Mapping) else type(content).__name__
        raise UserError(f"{path} holds no numbered convolutions (it starts with {keys}): give {FILES}")
    return weighted
