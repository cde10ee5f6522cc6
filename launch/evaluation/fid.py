"""The set-level half of ArtFID (Wright and Ommer 2022): a Fréchet distance in the features of an Inception for art."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from reward.weights import WeightFile, fill

ART_INCEPTION = WeightFile(
    "art_inception.pth", "https://huggingface.co/matthias-wright/art_inception/resolve/main/art_inception.pth"
)
SIZE = 512
FEATURES = 2048
_HEADS = ("fc", "avgpool", "dropout", "AuxLogits")


class ArtInception(nn.Module):
    """Inception v3, trained by ArtFID's authors on artists and styles of paintings: the features before its heads."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import inception_v3

        net = inception_v3(weights=None, aux_logits=False, transform_input=False, init_weights=False)
        # The authors' network has its own two heads. The layers below have torchvision's structure and names.
        self.trunk = nn.Sequential()
        for name, layer in net.named_children():
            if name not in _HEADS:
                self.trunk.add_module(name, layer)

    @torch.inference_mode()
    def forward(self, images_01: Tensor) -> Tensor:
        """fp32 [N, 3, H, W] in [0, 1] -> fp32 [N, 2048]. Images are not normalised, as in the network's training.

        They are first resized to 512 x 512 (antialiased bilinear), because the distance depends strongly on the size.
        """
        images_01 = F.interpolate(images_01, size=(SIZE, SIZE), mode="bilinear", antialias=True)
        return self.trunk(images_01).mean((2, 3))


def load_art_inception(folder: str | Path | None, device: torch.device | str = "cpu") -> ArtInception:
    """Load ArtFID's network. Raises MissingWeights, which says which file to put where, and UserError for a wrong file."""
    state = ART_INCEPTION.read(folder, "ArtFID")
    with torch.device("meta"):
        net = ArtInception()
    fill(net.trunk, state, ART_INCEPTION)
    net.requires_grad_(False)
    return net.eval().to(device)


def frechet_distance(first: NDArray, second: NDArray) -> float:
    """Fréchet distance between Gaussians fitted to features [n, D] and [m, D], n, m >= 2 (Heusel et al. 2017).

    |mu_1 - mu_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2). With S = A^T A the last trace is the sum of the singular values
    of A_1 A_2^T, which stays exact where the covariances are singular, as they are for fewer samples than dimensions.
    """
    (mean_1, root_1), (mean_2, root_2) = _gaussian(first), _gaussian(second)
    cross = np.linalg.svd(root_1 @ root_2.T, compute_uv=False).sum()
    return float(((mean_1 - mean_2) ** 2).sum() + (root_1**2).sum() + (root_2**2).sum() - 2 * cross)


def _gaussian(features: NDArray) -> tuple[NDArray, NDArray]:
    """Mean [D], and a matrix A of at most D rows with A^T A = the unbiased covariance."""
    features = features.astype(np.float64)
    mean = features.mean(0)
    root = (features - mean) / np.sqrt(len(features) - 1)
    return mean, root if len(root) <= root.shape[1] else np.asarray(np.linalg.qr(root, mode="r"))
