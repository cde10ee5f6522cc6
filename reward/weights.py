"""Published weights on disk: find and read each file, with a helpful error if it is missing.

Nothing is ever downloaded: a run must not depend on a server or use weights that the user did not choose.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from reward.base import MissingWeights, PerceptualDistance
from stylevar.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class WeightFile:
    """A published file: its path in the folder of --metric-weights, and its source."""

    path: str
    source: str

    def find(self, folder: str | Path | None, metric: str) -> Path:
        """The path of the file. Raises MissingWeights, which says where to put it, if there is no folder or no file."""
        if folder is None:
            raise MissingWeights(
                f"{metric} needs the weights {self.path} (from {self.source}): put the file into a folder and name that "
                "with --metric-weights"
            )
        path = Path(folder).expanduser() / self.path
        if not path.is_file():
            raise MissingWeights(f"{metric} needs the weights {path}: put the file from {self.source} there")
        return path

    def read(self, folder: str | Path | None, metric: str) -> dict[str, Tensor]:
        """The tensors by name. Raises like `find`, and UserError if the file is damaged."""
        return read_tensors(self.find(folder, metric), f"download it again from {self.source}")


class NetworkDistance(PerceptualDistance):
    """A distance based on a published network. Built on the meta device (without values), then loaded."""

    file: WeightFile
    """The files that it needs in --metric-weights."""

    @abstractmethod
    def load(self, folder: str | Path | None) -> None:
        """Read the weights from `folder`. Raises UserError if they are missing or do not fit."""


NetworkT = TypeVar("NetworkT", bound=NetworkDistance)


def load_network(kind: type[NetworkT], folder: str | Path | None) -> NetworkT:
    """Build a network distance with its weights, frozen, in eval mode, on CPU."""
    with torch.device("meta"):
        network = kind()
    network.load(folder)
    network.requires_grad_(False)
    return network.eval()


def read_tensors(path: Path, remedy: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors or torch file, on CPU. Never runs code in the file. UserError if it is damaged."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(str(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
        return {name: value for name, value in content.items() if isinstance(value, Tensor)}
    except Exception as error:  # The parsers can raise almost anything for a damaged file.
        raise UserError(f"{path} cannot be read as weights ({type(error).__name__}): {remedy}") from error


def fill(module: nn.Module, state: Mapping[str, Tensor], file: WeightFile) -> None:
    """Set all of `module`'s parameters and buffers, in fp32; other entries of `state` are ignored.

    Raises UserError if a value is missing or has another shape.
    """
    own = module.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}  # missing in files before 2018, and unused
    missing = [name for name in own if name not in state and name not in counters]
    wrong = [name for name in own if name in state and state[name].shape != own[name].shape]
    if missing or wrong:
        reason = f"lacks {missing[0]}" if missing else f"has another shape for {wrong[0]}"
        raise UserError(f"{file.path} is not the expected file: it {reason}; put the one from {file.source} there")
    values = {name: state[name].float() for name in own if name not in counters}
    values |= {name: torch.zeros((), dtype=torch.int64) for name in counters}
    module.load_state_dict(values, assign=True)


def normalise(images_01: Tensor, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD) -> Tensor:
    """[N, 3, H, W] in [0, 1] -> per channel, (x - mean) / std."""
    return (images_01 - images_01.new_tensor(mean).view(3, 1, 1)) / images_01.new_tensor(std).view(3, 1, 1)


def resized(images_01: Tensor, size: int) -> Tensor:
    """[N, 3, H, W] in [0, 1] -> [N, 3, size, size], antialiased bicubic as PIL does it, clamped to [0, 1]."""
    images_01 = nn.functional.interpolate(images_01, size=(size, size), mode="bicubic", antialias=True)
    return images_01.clamp(0, 1)
