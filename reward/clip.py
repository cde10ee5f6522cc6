"""CLIP's image embeddings (Radford et al. 2021), ViT-B/32 of OpenAI, through open_clip."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from reward.base import Embedding
from reward.weights import NetworkDistance, WeightFile, fill, normalise, resized

CLIP_FILE = WeightFile(
    "vit_base_patch32_clip_224.openai/open_clip_model.safetensors",
    "https://huggingface.co/timm/vit_base_patch32_clip_224.openai",
)
_MODEL, _SIZE = "ViT-B-32", 224
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipDistance(NetworkDistance):
    """1 - cosine of two images' embeddings: 1 - CLIP-I, which Ruiz et al. 2023 and others report.

    Images are resized to 224 x 224 (antialiased bicubic, the whole image) and normalised with CLIP's own constants.
    """

    name = "clip"
    file = CLIP_FILE

    def __init__(self) -> None:
        super().__init__()
        import open_clip  # takes seconds

        # OpenAI's weights were trained with the fast approximation of GELU; open_clip's default is the exact one.
        self.visual = open_clip.CLIP(**open_clip.get_model_config(_MODEL), quick_gelu=True).visual

    def load(self, folder: str | Path | None) -> None:
        state = self.file.read(folder, self.name)
        prefix = "visual."
        visual = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        fill(self.visual, visual, self.file)

    def embed(self, images_01: Tensor) -> Embedding:
        """fp32 [N, 3, H, W] in [0, 1] -> [N, 512]."""
        return (self.visual(normalise(resized(images_01, _SIZE), _MEAN, _STD)),)

    def compare(self, first: Embedding, second: Embedding) -> dict[str, Tensor]:
        """Cosine distances fp32 [N] in [0, 2]."""
        return {"total": 1 - torch.cosine_similarity(first[0], second[0], dim=-1)}
