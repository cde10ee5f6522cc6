"""From groups of generated images to rewards."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from reward.base import Embedding, PerceptualDistance, RewardConfig
from reward.build import build_distance
from reward.metrics import independent_metrics
from reward.statistics import image_statistics
from stylevar.contracts import Scores


class Scorer(Protocol):
    """What gives images rewards; see `RewardScorer.score`."""

    def score(self, generated_u8: Tensor, target_u8: Tensor) -> Scores: ...


class RewardScorer:
    """Reward = -scale * distance to the condition's target, which is embedded once for its whole group."""

    def __init__(self, distance: PerceptualDistance, scale: float = 5.0, batch_size: int = 64) -> None:
        if scale <= 0 or batch_size < 1:
            raise ValueError(f"scale must be positive and batch_size at least 1, got {scale} and {batch_size}")
        self.distance = distance
        self.scale = scale
        self.batch_size = batch_size

    @torch.inference_mode()
    def score(self, generated_u8: Tensor, target_u8: Tensor) -> Scores:
        """Score images uint8 [B, G, 3, H, W] against their conditions' targets uint8 [B, 3, H, W].

        Rewards and components are fp32 [B, G] on the generated images' device: the distance ("total"), its parts,
        the independent metrics, and the statistics of samples and targets. But for the diversity of its group, an image's
        values do not depend on what else is in the batch.
        Raises ValueError on other types or shapes; nothing is ever broadcast.
        """
        _check(generated_u8, target_u8)
        b, g = generated_u8.shape[:2]
        conditions = max(1, self.batch_size // g)
        rows = []
        for start in range(0, b, conditions):
            chosen = slice(start, start + conditions)
            target_01 = _to_01(target_u8[chosen], self.distance.device)
            embedding = self.distance.embed_targets(target_01)
            # More than one part only if a single group is larger than the batch.
            parts = [
                self._score_part(images, embedding, target_01)
                for images in generated_u8[chosen].split(self.batch_size, dim=1)
            ]
            rows.append({name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]})
        device = generated_u8.device
        components = {name: torch.cat([row[name] for row in rows]).to(device) for name in rows[0]}
        components |= image_statistics(generated_u8, target_u8, self.distance.device)
        return Scores(rewards=-self.scale * components["total"], components=components)

    def _score_part(self, images_u8: Tensor, embedding: Embedding, target_01: Tensor) -> dict[str, Tensor]:
        """Components [b, g] of images uint8 [b, g, 3, H, W]."""
        images_01 = _to_01(images_u8, self.distance.device)
        components = self.distance.distance(embedding, images_01)
        targets = target_01.repeat_interleave(images_01.shape[1], dim=0)
        metrics = independent_metrics(images_01.flatten(0, 1), targets)
        return components | {name: value.view(images_01.shape[:2]) for name, value in metrics.items()}


def build_scorer(config: RewardConfig, device: str | torch.device = "cpu") -> RewardScorer:
    """The configured scorer on `device`. Raises UserError if the settings or the weights are unusable."""
    return RewardScorer(build_distance(config, device), config.scale, config.reward_batch)


def _to_01(images_u8: Tensor, device: torch.device) -> Tensor:
    return images_u8.to(device).float() / 255


def _check(generated_u8: Tensor, target_u8: Tensor) -> None:
    shapes = f"generated {list(generated_u8.shape)} {generated_u8.dtype}, target {list(target_u8.shape)} {target_u8.dtype}"
    if generated_u8.dtype != torch.uint8 or target_u8.dtype != torch.uint8:
        raise ValueError(f"images must be uint8: {shapes}")
    if generated_u8.ndim != 5 or target_u8.ndim != 4 or generated_u8.shape[2] != 3 or 0 in generated_u8.shape:
        raise ValueError(f"expected images [B, G, 3, H, W] and targets [B, 3, H, W]: {shapes}")
    if generated_u8.shape[:1] + generated_u8.shape[2:] != target_u8.shape:
        raise ValueError(f"generated images and targets differ in number or size: {shapes}")
