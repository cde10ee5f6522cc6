"""The interface behind which every perceptual distance stands, its configuration, and the builder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from stylevar.errors import UserError

Embedding = tuple[Tensor, ...]
"""What a distance needs to remember of N images: tensors with N rows each."""

DreamSimType = Literal["dino_vitb16", "clip_vitb32", "open_clip_vitb32", "ensemble", "synclr_vitb16", "dino_vitb16_patch"]
"""The package's models that load from files alone; its DINOv2 models exist only as code behind torch.hub."""


@dataclass(frozen=True)
class RewardConfig:
    """How generated images are compared with their targets."""

    reward: Literal["lite", "dreamsim"] = "lite"
    """The distance: dreamsim is the published reward and needs its weights on disk; lite is built in and needs none."""
    dreamsim_type: DreamSimType = "dino_vitb16"
    """Which DreamSim model scores the images. Used only with --reward dreamsim."""
    dreamsim_cache: str | None = None
    """Folder that holds DreamSim's weight files; nothing is downloaded into it. Required with --reward dreamsim."""
    reward_scale: float = 5.0
    """Lambda: the reward is -scale * distance."""
    reward_batch: int = 64
    """The most generated images that are scored at once; a smaller number saves memory."""


class PerceptualDistance(nn.Module, ABC):
    """A frozen distance between images: embed each image once, then compare embeddings row by row."""

    name: str
    """What the distance is called in logs and reports."""

    @abstractmethod
    def embed(self, images_01: Tensor) -> Embedding:
        """fp32 [N, 3, H, W] in [0, 1] -> tensors with N rows each."""

    @abstractmethod
    def compare(self, first: Embedding, second: Embedding) -> dict[str, Tensor]:
        """Distances fp32 [N] between rows of equal index: "total", and the parts it is made of."""

    @property
    def device(self) -> torch.device:
        """Where the weights are, and so where images have to be."""
        return next(self.parameters()).device

    def train(self, mode: bool = True) -> PerceptualDistance:
        """A distance is never trained: it stays in eval mode whatever a surrounding module switches to."""
        return super().train(False)

    def embed_targets(self, target_01: Tensor) -> Embedding:
        """fp32 [B, 3, H, W] in [0, 1] -> embedding with B rows, to be computed once per condition."""
        _check_images("targets", target_01, 4)
        return self.embed(target_01)

    def distance(self, embedding: Embedding, generated_01: Tensor) -> dict[str, Tensor]:
        """Distances fp32 [B, G] of generated images fp32 [B, G, 3, H, W] in [0, 1] to the B embedded targets.

        Raises ValueError if the embedding does not hold exactly B rows: a single row is never broadcast.
        """
        _check_images("generated images", generated_01, 5)
        b, g = generated_01.shape[:2]
        rows = {part.shape[0] for part in embedding}
        if rows != {b}:
            raise ValueError(f"generated images of {b} conditions cannot be compared with {sorted(rows)} embedded targets")
        targets = tuple(part.repeat_interleave(g, dim=0) for part in embedding)
        parts = self.compare(targets, self.embed(generated_01.flatten(0, 1)))
        return {name: value.float().view(b, g) for name, value in parts.items()}


def build_distance(config: RewardConfig, device: str | torch.device = "cpu") -> PerceptualDistance:
    """The configured distance, in eval mode on `device`. Raises UserError if its settings or weights are unusable."""
    if config.reward == "lite":
        from reward.lite import LiteDistance

        return LiteDistance().to(device)
    if config.reward == "dreamsim":
        # Imported here: the dreamsim package takes seconds to import, and the lite reward does without.
        from reward.dreamsim import DreamSimDistance

        if config.dreamsim_cache is None:
            raise UserError(
                "the dreamsim reward has no dreamsim_cache: name the folder that holds DreamSim's weights, "
                "or take the built-in lite reward"
            )
        return DreamSimDistance(config.dreamsim_type, config.dreamsim_cache, device)
    raise UserError(f"unknown reward {config.reward!r}: choose lite or dreamsim")


def _check_images(what: str, images: Tensor, dims: int) -> None:
    if images.ndim != dims or images.shape[-3] != 3 or not images.is_floating_point():
        shape = "[B, 3, H, W]" if dims == 4 else "[B, G, 3, H, W]"
        raise ValueError(f"{what} must be floating point {shape}, got {images.dtype} {list(images.shape)}")
