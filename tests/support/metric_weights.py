"""Random weights in the formats and under the names of the published files, no larger than what is read of them."""

from __future__ import annotations

from pathlib import Path

import torch
import torchvision.models
from torch import Tensor

from reward.dino import DINO_FILE
from reward.lpips import ALEXNET, VGG16
from reward.vgg import VGG19


def write_vgg19(folder: Path, last: int = 28) -> None:
    _write_torchvision("vgg19", folder / VGG19.path, last)


def write_vgg16(folder: Path) -> None:
    _write_torchvision("vgg16", folder / VGG16.path, 28)


def write_alexnet(folder: Path) -> None:
    _write_torchvision("alexnet", folder / ALEXNET.path, 11)


def write_dino(folder: Path) -> torch.nn.Module:
    """The authors' own network (as it comes with the dreamsim package), which is returned."""
    from dreamsim.feature_extraction.vision_transformer import vit_base

    vit = vit_base(patch_size=16)
    state = {name: _random(name, value, seed) for seed, (name, value) in enumerate(vit.state_dict().items())}
    vit.load_state_dict(state, assign=True)
    torch.save(state, folder / DINO_FILE.path)
    return vit.eval()


def _write_torchvision(kind: str, path: Path, last: int) -> None:
    with torch.device("meta"):
        features = getattr(torchvision.models, kind)(weights=None).features[: last + 1]
    state = features.state_dict()
    torch.save({f"features.{name}": _random(name, value, seed) for seed, (name, value) in enumerate(state.items())}, path)


def _random(name: str, shape_of: Tensor, seed: int) -> Tensor:
    """Signals keep their size through matrices; norms stay near one, and nothing is zero."""
    value = torch.randn(shape_of.shape, generator=torch.Generator().manual_seed(seed))
    if shape_of.ndim > 1:
        fan_in = max(1, shape_of[0].numel())
        return value * (2 / fan_in) ** 0.5
    return (1 if name.endswith("weight") else 0) + 0.1 * value
