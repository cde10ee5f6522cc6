"""Lessons to learn from: of any tokens and rewards, and of what a small model sampled."""

from __future__ import annotations

import small_model
import torch
from torch import Tensor

from learner.lesson import Lesson
from rollout.config import RolloutConfig
from rollout.sampler import GroupSampler
from stylevar.adapters import Adapters
from stylevar.conditions import ConditionState
from stylevar.contracts import PolicyVersion, Trajectories


def lesson(tokens: Tensor, rewards: Tensor, detail: Tensor) -> Lesson:
    """Tokens [B, G, L] with rewards [B, G] and their detail, for methods of credit assignment; nothing else is set."""
    nothing = torch.zeros(tokens.shape)
    keys = tuple(map(str, range(len(tokens))))
    rows = Trajectories(keys, tokens, nothing, nothing, nothing, nothing, PolicyVersion(0, 0))
    return Lesson(None, rows, nothing, rewards, detail)


def sampled(group: int = 4) -> tuple[Adapters, ConditionState, Trajectories, Tensor]:
    """The adapters of a small model; two conditions, their trajectories, and random rewards."""
    model = small_model.build()
    adapters = small_model.adapt(model)
    sampler = GroupSampler(model, RolloutConfig(group=group))
    batch = small_model.batch(model, 2)
    rows = sampler.sample(batch, 0, 0, PolicyVersion(0, 0))
    rewards = torch.randn(2, group, generator=torch.Generator().manual_seed(3))
    return adapters, sampler.conditions.get(batch), rows, rewards
