"""DINO's image embeddings (Caron et al. 2021), ViT-B/16, through timm."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from reward.base import Embedding
from reward.weights import NetworkDistance, WeightFile, fill, normalise, resized

DINO_FILE = WeightFile(
    "dino_vitbase16_pretrain.pth",
    "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
)
_SIZE = 224


class DinoDistance(NetworkDistance):
    """1 - cosine of two images' class tokens after the last norm. It captures more shape and layout than CLIP, less meaning.

    Images are resized to 224 x 224 (antialiased bicubic, the whole image) and normalised with ImageNet's constants.
    """

    name = "dino"
    file = DINO_FILE

    def __init__(self) -> None:
        super().__init__()
        import timm

        # timm's names are those of the authors' file.
        self.net = timm.create_model("vit_base_patch16_224.dino", pretrained=False, num_classes=0)

    def load(self, folder: str | Path | None) -> None:
        fill(self.net, self.file.read(folder, self.name), self.file)

    def embed(self, images_01: Tensor) -> Embedding:
        """fp32 [N, 3, H, W] in [0, 1] -> [N, 768]."""
        return (self.net(normalise(resized(images_01, _SIZE))),)

    def compare(self, first: Embedding, second: Embedding) -> dict[str, Tensor]:
        """Cosine distances fp32 [N] in [0, 2]."""
        return {"total": 1 - torch.cosine_similarity(first[0], second[0], dim=-1)}
