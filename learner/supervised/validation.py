"""Held-out loss and accuracy, as sums over batches and processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from learner.parallel import sum_over_ranks


@dataclass(frozen=True)
class ValidationSums:
    """Sums over tokens, float64 [4, S]: cross-entropy in nats, best guess right, right in the best k, number of tokens."""

    sums: Tensor

    @staticmethod
    def of(logits: Tensor, target: Tensor, scales: list[slice], k: int) -> ValidationSums:
        """The sums for logits fp32 [B, L, V] and target tokens int64 [B, L]."""
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
        best = logits.topk(min(k, logits.shape[-1]), dim=-1).indices == target.unsqueeze(-1)
        per_token = torch.stack([loss, best[..., 0], best.any(-1), torch.ones_like(loss)]).double().sum(1)
        return ValidationSums(torch.stack([per_token[:, at].sum(-1) for at in scales], dim=-1))

    def __add__(self, other: ValidationSums) -> ValidationSums:
        return ValidationSums(self.sums + other.sums)

    def over_ranks(self) -> ValidationSums:
        """The sums over all processes; all processes must call it."""
        return ValidationSums(sum_over_ranks(self.sums.clone()))

    @property
    def loss(self) -> float:
        """Mean cross-entropy over all tokens."""
        return self._mean(0)

    @property
    def top1(self) -> float:
        """Share of all tokens with the right best guess."""
        return self._mean(1)

    @property
    def topk(self) -> float:
        """Share of all tokens that are among the best k guesses."""
        return self._mean(2)

    def scalars(self, split: str, k: int) -> dict[str, float]:
        """All numbers under TensorBoard tags: all tokens, the last scale, and each scale."""
        loss, top1, topk = (self.sums[:3] / self.sums[3]).tolist()
        tags = {f"{split}/loss": self.loss, f"{split}/top1": self.top1, f"{split}/top{k}": self.topk}
        tags |= {f"{split}/last_scale/loss": loss[-1], f"{split}/last_scale/top1": top1[-1]}
        tags[f"{split}/last_scale/top{k}"] = topk[-1]
        for s, values in enumerate(zip(loss, top1, topk, strict=True)):
            for name, value in zip(("loss", "top1", f"top{k}"), values, strict=True):
                tags[f"{split}_scales/{name}/{s + 1:02d}"] = value
        return tags

    def _mean(self, row: int) -> float:
        return float(self.sums[row].sum() / self.sums[3].sum())
