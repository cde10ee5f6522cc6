"""The scorer as a Ray actor, for a placement of its own."""

from __future__ import annotations

from typing import Any

import ray
from torch import Tensor

from reward.base import RewardConfig
from reward.scorer import build_scorer
from stylevar.contracts import Scores


class RewardActor:
    """Holds one scorer, built inside the actor's process."""

    def __init__(self, config: RewardConfig, device: str = "cpu") -> None:
        self._scorer = build_scorer(config, device)

    def score(self, generated_u8: Tensor, target_u8: Tensor) -> Scores:
        """See `RewardScorer.score`: uint8 [B, G, 3, H, W] and [B, 3, H, W] -> Scores on the images' device."""
        return self._scorer.score(generated_u8, target_u8)


def start_reward_actor(config: RewardConfig, device: str = "cpu", **options: Any) -> Any:
    """Start the actor and return its handle at once; `options` are Ray's (num_cpus, num_gpus, scheduling_strategy...).

    Unusable settings surface when the first `score.remote(...)` is fetched, as the actor's death with its cause.
    """
    return ray.remote(RewardActor).options(**options).remote(config, device)
