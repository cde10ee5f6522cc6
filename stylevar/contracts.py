"""What passes between the roles: plain dataclasses of tensors. Group tensors are condition-major, [B, G, ...]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """One (content, style, target) triplet. Images are uint8 [3, H, W] in [0, 255].

    `tokens`, if known, are the VQ tokens of the three images in this order: int16 [3, L].
    """

    key: str
    content: Tensor
    style: Tensor
    target: Tensor
    meta: Mapping[str, Any] = field(default_factory=dict)
    tokens: Tensor | None = None


@dataclass(frozen=True)
class ConditionBatch:
    """B conditions stacked: `content`, `style` and `target` are uint8 [B, 3, H, W], `tokens` int16 [B, 3, L] or None."""

    keys: tuple[str, ...]
    content: Tensor
    style: Tensor
    target: Tensor
    tokens: Tensor | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @staticmethod
    def stack(conditions: Sequence[Condition]) -> ConditionBatch:
        """Stack single conditions of one image size; a mixture of sizes raises ValueError.

        The batch has tokens if all of the conditions have.
        """
        sizes = {tuple(image.shape) for c in conditions for image in (c.content, c.style, c.target)}
        if len(sizes) != 1:
            raise ValueError(f"conditions of several image shapes cannot form one batch: {sorted(sizes)}")
        tokens = [c.tokens for c in conditions if c.tokens is not None]
        return ConditionBatch(
            tuple(c.key for c in conditions),
            torch.stack([c.content for c in conditions]),
            torch.stack([c.style for c in conditions]),
            torch.stack([c.target for c in conditions]),
            torch.stack(tokens) if len(tokens) == len(conditions) else None,
        )


class PolicyVersion(NamedTuple):
    """Which weights: how often adapters were merged into (or rolled back from) the base, and updates since the start."""

    merges: int
    updates: int


@dataclass(frozen=True)
class Trajectories:
    """G sampled token maps for each of B conditions, with what the learner needs to weigh them.

    tokens     int16 [B, G, L]   VQ indices, scales concatenated, row-major within a scale
    logp       fp32 [B, G, L]    log-prob of each token under the full softmax at the sampling temperature 1
    kept_mass  fp32 [B, G, L]    log of the probability mass that top-k and top-p kept (0 where nothing was cut)
    images     uint8 [B, G, 3, H, W]
    seeds      int64 [B, G]      the seed of each trajectory's random stream
    support    uint8 [B, G, L, ceil(V / 8)] or None: the sets the tokens were drawn from, packed (`--logprob support`)
    """

    keys: tuple[str, ...]
    tokens: Tensor
    logp: Tensor
    kept_mass: Tensor
    images: Tensor
    seeds: Tensor
    policy_version: PolicyVersion
    support: Tensor | None = None


@dataclass(frozen=True)
class Scores:
    """Rewards fp32 [B, G] (higher is better) and the components they were made of, each fp32 [B, G]."""

    rewards: Tensor
    components: dict[str, Tensor]


StepMetrics = dict[str, float]
"""Flat {TensorBoard tag: value}."""
