"""The settings of rollouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from stylevar.bounds import Remedy, check_bounds
from stylevar.sampling_config import SamplingConfig, conditions_at_once


@dataclass(frozen=True)
class RolloutConfig(SamplingConfig):
    """How trajectories are sampled."""

    group: Annotated[int, Ge(2), Remedy("a group of one has no spread to learn from")] = 16
    """Trajectories per condition (G), at least 2."""
    logprob: Literal["full", "support"] = "full"
    """Log-probs under the full softmax (as published), or renormalised over the tokens that could be drawn."""
    rollout_batch: Annotated[int, Ge(0)] = 0
    """Most trajectories sampled at once; 0 for as many as fit the memory budget."""
    decode_batch: Annotated[int, Ge(0)] = 0
    """Most images in the VQ-VAE at once; 0 for as many as fit the memory budget."""
    cuda_graphs: bool = False
    """Record the kernels of a rollout once per shape and replay them: less launch overhead for more memory."""

    def __post_init__(self) -> None:
        check_bounds(self)
        super().__post_init__()

    def at_once(self, conditions: int) -> int:
        """How many of the conditions to sample together, at least one; all of them without a limit."""
        return conditions_at_once(self.rollout_batch, conditions, self.group)
