"""The scorer as a Ray actor."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from reward.config import RewardConfig
from reward.scorer import build_scorer
from stylevar.allocator import keep_freed_memory
from stylevar.contracts import CallInfo, ConditionBatch, RewardDetail, Scores
from stylevar.role_log import RoleLog


class RewardWorker:
    """Holds one scorer, built inside the actor's process by `setup`."""

    def __init__(self, name: str) -> None:
        self._log = RoleLog(name)

    def setup(self, config: RewardConfig, device: str, threads: int, detail: RewardDetail = "none") -> None:
        """Build the scorer. Raises UserError if settings or weights are unusable, or if the reward cannot give `detail`."""
        keep_freed_memory()
        torch.set_num_threads(threads)
        self._scorer = build_scorer(config, device, detail)

    def score(
        self, images_u8: Tensor, batch: ConditionBatch, step: int, detail: RewardDetail = "none"
    ) -> tuple[Scores, CallInfo]:
        """Score images uint8 [B, G, 3, H, W] against the references of their conditions; the scores are on CPU."""
        start, self._log.step = time.perf_counter(), step
        scores = self._scorer.score(images_u8, batch.references, detail)
        return scores, CallInfo(time.perf_counter() - start)
