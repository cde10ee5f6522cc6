"""From groups of generated images to rewards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from reward.base import Embedding, PerceptualDistance
from reward.build import build_distance
from reward.config import RewardConfig
from reward.metrics import independent_metrics
from reward.statistics import image_statistics
from stylevar.contracts import References, RewardDetail, Scores
from stylevar.errors import UserError
from stylevar.references import Reference


class Scorer(Protocol):
    """Anything that scores images; see `RewardScorer.score`."""

    def score(self, generated_u8: Tensor, references: References, detail: RewardDetail = "none") -> Scores: ...


class RewardScorer:
    """Reward = -scale * distance to the condition's references, which are embedded once per group."""

    def __init__(self, distance: PerceptualDistance, scale: float = 5.0, batch_size: int = 64) -> None:
        if scale <= 0 or batch_size < 1:
            raise ValueError(f"scale must be positive and batch_size at least 1, got {scale} and {batch_size}")
        self.distance = distance
        self.scale = scale
        self.batch_size = batch_size

    @torch.no_grad()
    def score(self, generated_u8: Tensor, references: References, detail: RewardDetail = "none") -> Scores:
        """Score images uint8 [B, G, 3, H, W] against the references of their conditions.

        Rewards and components are fp32 [B, G] on the generated images' device. The components are the distance ("total"),
        its parts, the statistics of the samples and, if there are targets, the independent metrics and the targets'
        statistics. Apart from the diversity of its group, an image's values do not depend on the rest of the batch.

        Args:
            generated_u8: the images; for `detail` "prefixes" those after every scale, uint8 [B, G, S, 3, H, W].
            references: must contain the references that the reward compares with.
            detail: the additional output in `Scores.detail`.

        Raises:
            ValueError: wrong types or shapes (nothing is broadcast), or a missing reference.
            UserError: the reward cannot give this detail.
        """
        if detail == "prefixes":
            return self._score_prefixes(generated_u8, references)
        _check(generated_u8, references, self.distance.compared_with)
        device = generated_u8.device
        rows, details = [], []
        for pictures_01, embedding, portion in self._portions(generated_u8, references):
            parts = [self._score_part(images, embedding, pictures_01.get("target"), detail) for images in portion]
            rows.append({name: torch.cat([part[name] for part, _ in parts], dim=1) for name in parts[0][0]})
            if detail != "none":
                details.append(torch.cat([more for _, more in parts if more is not None], dim=1).to(device))
        components = {name: torch.cat([row[name] for row in rows]).to(device) for name in rows[0]}
        components |= image_statistics(generated_u8, references.target, self.distance.device)
        return Scores(-self.scale * components["total"], components, torch.cat(details) if details else None)

    def _score_prefixes(self, prefixes_u8: Tensor, references: References) -> Scores:
        """`score` of the last images of uint8 [B, G, S, 3, H, W], with the rewards of all of them as the detail."""
        if prefixes_u8.ndim != 6:
            raise ValueError(f"expected images [B, G, S, 3, H, W] after every scale, not {list(prefixes_u8.shape)}")
        scores = self.score(prefixes_u8[:, :, -1], references)
        if prefixes_u8.shape[2] == 1:
            return replace(scores, detail=scores.rewards[..., None])
        rewards = []
        for _, embedding, portion in self._portions(prefixes_u8[:, :, :-1].flatten(1, 2), references):
            parts = [self.distance.distance(embedding, _to_01(images, self.distance.device)) for images in portion]
            rewards.append(-self.scale * torch.cat([part["total"] for part in parts], dim=1))
        early = torch.cat(rewards).to(scores.rewards.device).unflatten(1, (prefixes_u8.shape[1], -1))
        return replace(scores, detail=torch.cat([early, scores.rewards[..., None]], dim=-1))

    def _portions(
        self, generated_u8: Tensor, references: References
    ) -> Iterator[tuple[Mapping[Reference, Tensor], Embedding, tuple[Tensor, ...]]]:
        """Yield a few conditions at a time: the images to compare with, fp32 [b, 3, H, W] by name; their embedding; and the
        generated images uint8 [b, g, 3, H, W], in several parts only if one group is larger than the batch."""
        used = {"target", *self.distance.compared_with}
        pictures = {name: images for name, images in references.pictures().items() if name in used}
        conditions = max(1, self.batch_size // generated_u8.shape[1])
        for start in range(0, len(generated_u8), conditions):
            chosen = slice(start, start + conditions)
            some_01 = {name: _to_01(images[chosen], self.distance.device) for name, images in pictures.items()}
            yield some_01, self.distance.embed_references(some_01), generated_u8[chosen].split(self.batch_size, dim=1)

    def _score_part(
        self, images_u8: Tensor, embedding: Embedding, target_01: Tensor | None, detail: RewardDetail
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Components [b, g] of images uint8 [b, g, 3, H, W], and the detail."""
        images_01 = _to_01(images_u8, self.distance.device)
        more: Tensor | None = None
        if detail == "gradient":
            components, more = self._with_gradient(embedding, images_01)
        elif detail == "map":
            components, cells = self.distance.distance_and_cells(embedding, images_01)
            more = -self.scale * cells
        else:
            components = self.distance.distance(embedding, images_01)
        if target_01 is None:
            return components, more
        targets = target_01.repeat_interleave(images_01.shape[1], dim=0)
        metrics = independent_metrics(images_01.flatten(0, 1), targets)
        return components | {name: value.view(images_01.shape[:2]) for name, value in metrics.items()}, more

    @torch.enable_grad()
    def _with_gradient(self, embedding: Embedding, images_01: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Components, and the gradient of the rewards in the images' shape: bf16, because fp16 loses small values."""
        images_01 = images_01.detach().requires_grad_()
        components = self.distance.distance(embedding, images_01)
        total = components["total"]
        if not total.requires_grad:
            raise UserError(
                f"--credit gradient: the reward {self.distance.name} has no gradient with respect to the image; choose a "
                "differentiable one (all built-in ones are), or --credit trajectory"
            )
        upstream = torch.full_like(total, -self.scale)
        slope = torch.autograd.grad(total, images_01, upstream)[0].to(torch.bfloat16)
        return {name: value.detach() for name, value in components.items()}, slope


def build_scorer(config: RewardConfig, device: str | torch.device = "cpu", detail: RewardDetail = "none") -> RewardScorer:
    """Build the configured scorer on `device` and check on one image that it can give the `detail`.

    Raises UserError if the settings or weights are unusable, or if the reward cannot give this detail.
    """
    scorer = RewardScorer(build_distance(config, device), config.scale, config.reward_batch)
    if detail in ("gradient", "map"):
        grey, black = torch.full((1, 1, 3, 64, 64), 128, dtype=torch.uint8), torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
        scorer.score(grey, References(black, black, black), detail)
    return scorer


def _to_01(images_u8: Tensor, device: torch.device) -> Tensor:
    return images_u8.to(device).float() / 255


def _check(generated_u8: Tensor, references: References, needed: tuple[Reference, ...]) -> None:
    pictures = references.pictures()
    if missing := [name for name in needed if name not in pictures]:
        raise ValueError(f"the reward compares with the {missing[0]}, but these conditions have none")
    for name, picture_u8 in pictures.items():
        _check_pair(generated_u8, name, picture_u8)


def _check_pair(generated_u8: Tensor, name: str, picture_u8: Tensor) -> None:
    shapes = f"generated {list(generated_u8.shape)} {generated_u8.dtype}, {name} {list(picture_u8.shape)} {picture_u8.dtype}"
    if generated_u8.dtype != torch.uint8 or picture_u8.dtype != torch.uint8:
        raise ValueError(f"images must be uint8: {shapes}")
    if generated_u8.ndim != 5 or picture_u8.ndim != 4 or generated_u8.shape[2] != 3 or 0 in generated_u8.shape:
        raise ValueError(f"expected images [B, G, 3, H, W] and references [B, 3, H, W]: {shapes}")
    if generated_u8.shape[:1] + generated_u8.shape[2:] != picture_u8.shape:
        raise ValueError(f"generated images and references differ in number or size: {shapes}")
