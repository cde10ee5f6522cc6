"""The data that the roles exchange: plain dataclasses of tensors. Group tensors are condition-major, [B, G, ...]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from stylevar.references import Reference


@dataclass(frozen=True)
class References:
    """The images of B conditions that a reward can compare with: uint8 [B, 3, H, W] each, or None if there are none."""

    target: Tensor | None = None
    content: Tensor | None = None
    style: Tensor | None = None

    def pictures(self) -> dict[Reference, Tensor]:
        """The available images by name."""
        every: dict[Reference, Tensor | None] = {"content": self.content, "style": self.style, "target": self.target}
        return {name: images for name, images in every.items() if images is not None}


@dataclass(frozen=True)
class Condition:
    """One (content, style, target) triplet, or a pair without a target. Images are uint8 [3, H, W] in [0, 255].

    `tokens`, if known, are the VQ tokens of the three images in this order: int16 [3, L]; -1 for a missing target.
    """

    key: str
    content: Tensor
    style: Tensor
    target: Tensor | None
    meta: Mapping[str, Any] = field(default_factory=dict)
    tokens: Tensor | None = None


@dataclass(frozen=True)
class ConditionBatch:
    """B conditions stacked: `content`, `style` and `target` are uint8 [B, 3, H, W], `tokens` int16 [B, 3, L] or None.

    `target` is None if the conditions have none.
    """

    keys: tuple[str, ...]
    content: Tensor
    style: Tensor
    target: Tensor | None
    tokens: Tensor | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str) -> ConditionBatch:
        """Move the images to `device`; tokens stay on theirs."""
        moved: dict[str, Any] = {name: images.to(device) for name, images in self.references.pictures().items()}
        return replace(self, **moved)

    @property
    def references(self) -> References:
        """What a reward can compare generated images with."""
        return References(self.target, self.content, self.style)

    def select(self, rows: slice) -> ConditionBatch:
        """Some of the conditions."""
        chosen: dict[str, Any] = {name: images[rows] for name, images in self.references.pictures().items()}
        return replace(self, keys=self.keys[rows], tokens=None if self.tokens is None else self.tokens[rows], **chosen)

    @staticmethod
    def stack(conditions: Sequence[Condition]) -> ConditionBatch:
        """Stack conditions of one image size, all with a target or all without; raises ValueError for a mixture.

        The batch has tokens if all conditions have them.
        """
        targets = [c.target for c in conditions if c.target is not None]
        if targets and len(targets) < len(conditions):
            raise ValueError(f"only {len(targets)} of {len(conditions)} conditions have a target: they form no batch")
        sizes = {tuple(image.shape) for image in (*(i for c in conditions for i in (c.content, c.style)), *targets)}
        if len(sizes) != 1:
            raise ValueError(f"conditions of several image shapes cannot form one batch: {sorted(sizes)}")
        tokens = [c.tokens for c in conditions if c.tokens is not None]
        return ConditionBatch(
            tuple(c.key for c in conditions),
            torch.stack([c.content for c in conditions]),
            torch.stack([c.style for c in conditions]),
            torch.stack(targets) if targets else None,
            torch.stack(tokens) if len(tokens) == len(conditions) else None,
        )


class PolicyVersion(NamedTuple):
    """Identifies weights by the number of merges into the base and of adapter changes (updates, rollbacks) so far."""

    merges: int
    updates: int


@dataclass(frozen=True)
class Trajectories:
    """G sampled token maps for each of B conditions, with the numbers that the learner needs.

    tokens     int16 [B, G, L]   VQ indices, scales concatenated, row-major within a scale
    logp       fp32 [B, G, L]    log-prob of each token under the full softmax at the sampling temperature 1
    kept_mass  fp32 [B, G, L]    log of the probability mass that top-k and top-p kept (0 where nothing was cut)
    images     uint8 [B, G, 3, H, W], or [B, 0, 3, H, W] if they were sent to the scorer instead
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

    def select(self, rows: slice) -> Trajectories:
        """The trajectories of some of the conditions."""
        columns = ("tokens", "logp", "kept_mass", "images", "seeds")
        chosen = {name: getattr(self, name)[rows] for name in columns}
        support = None if self.support is None else self.support[rows]
        return replace(self, keys=self.keys[rows], support=support, **chosen)

    def to(self, device: torch.device | str) -> Trajectories:
        """Move all tensors except the seeds to `device`."""
        moved = {name: getattr(self, name).to(device) for name in ("tokens", "logp", "kept_mass", "images")}
        return replace(self, support=None if self.support is None else self.support.to(device), **moved)

    def without_images(self) -> Trajectories:
        """The trajectories as the learner needs them, with no images."""
        return replace(self, images=self.images[:, :0])


RewardDetail = Literal["none", "gradient", "map", "prefixes"]
"""Additional outputs of a reward; each method of credit assignment declares the one it needs."""


@dataclass(frozen=True)
class Scores:
    """Rewards fp32 [B, G] (higher is better) and their components, each fp32 [B, G].

    `detail` is the requested additional output, by `RewardDetail`:

    none      None
    gradient  bf16 [B, G, 3, H, W]  of the reward with respect to the image in [0, 1]
    map       fp32 [B, G, n, n]     the reward of each cell of a grid over the image; their mean is the reward
    prefixes  fp32 [B, G, S]        the reward of the image after each scale; the last is the reward
    """

    rewards: Tensor
    components: dict[str, Tensor]
    detail: Tensor | None = None


@dataclass(frozen=True)
class TrajectoryRows:
    """The record of B groups of G trajectories of one step.

    rewards, advantages  float [B, G]
    components           {name: float [B, G]}, the components of the rewards
    logp                 float [B, G], log-prob summed over the tokens
    kl                   float [B, G], PANW-weighted estimate before beta
    seeds                int64 [B, G]
    """

    keys: tuple[str, ...]
    rewards: Tensor
    components: Mapping[str, Tensor]
    advantages: Tensor
    logp: Tensor
    kl: Tensor
    seeds: Tensor
    version: PolicyVersion

    @staticmethod
    def of(trajectories: Trajectories, scores: Scores, advantages: Tensor, kl: Tensor) -> TrajectoryRows:
        """The rows of scored trajectories after the update; `advantages` and `kl` are float [B, G] on the CPU."""
        return TrajectoryRows(
            keys=trajectories.keys,
            rewards=scores.rewards.cpu(),
            components={name: value.cpu() for name, value in scores.components.items()},
            advantages=advantages,
            logp=trajectories.logp.sum(-1).cpu(),
            kl=kl,
            seeds=trajectories.seeds,
            version=trajectories.policy_version,
        )

    @staticmethod
    def join(parts: Sequence[TrajectoryRows]) -> TrajectoryRows:
        """Concatenate rows of one policy version."""
        return TrajectoryRows(
            keys=tuple(key for part in parts for key in part.keys),
            rewards=torch.cat([part.rewards for part in parts]),
            components={name: torch.cat([part.components[name] for part in parts]) for name in parts[0].components},
            advantages=torch.cat([part.advantages for part in parts]),
            logp=torch.cat([part.logp for part in parts]),
            kl=torch.cat([part.kl for part in parts]),
            seeds=torch.cat([part.seeds for part in parts]),
            version=parts[0].version,
        )


@dataclass(frozen=True)
class CallInfo:
    """A worker's summary of a call, small enough to send to the driver: the seconds that the call took."""

    seconds: float


StepMetrics = dict[str, float]
"""Flat {TensorBoard tag: value}."""
