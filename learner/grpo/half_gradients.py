"""Estimate the signal-to-noise ratio of an update by comparing the gradients of two halves of its conditions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MAX_VALUES = 1 << 24
"""Most gradient values to compare (64 MiB): those of all matrices if they fit, else of evenly spaced matrices."""


class HalfGradients:
    """Compares the gradients of the first half of a pass's conditions with those of the second half.

    Both halves estimate the same expected gradient g with independent noise. If their average cosine is c, their mean,
    which the step uses, has |g|^2 / E|noise|^2 = 2 c / (1 - c).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], conditions: int) -> None:
        """Create it while all gradients are zero."""
        every = max(1, -(-sum(p.numel() for p in parameters) // MAX_VALUES))
        self._parameters = list(parameters)[::every]
        self._conditions, self._added = conditions, 0
        self._first: list[Tensor] = []

    def added_condition(self) -> None:
        """Call after the gradients of another condition have been added."""
        self._added += 1
        if self._conditions > 1 and self._added == self._conditions // 2:
            self._first = [p.grad.clone() for p in self._parameters if p.grad is not None]

    @torch.no_grad()
    def cosine(self) -> float | None:
        """The cosine of the halves' gradients, in [-1, 1]; None without two halves, or if one is zero or not finite."""
        if not self._first:
            return None
        grads = [p.grad for p in self._parameters if p.grad is not None]
        sums = torch.zeros(3, dtype=torch.float64, device=grads[0].device)
        for first, both in zip(self._first, grads, strict=True):
            second = both - first
            sums += torch.stack([(first * second).sum(), first.square().sum(), second.square().sum()])
        dot, *squares = sums.tolist()
        scale = (squares[0] * squares[1]) ** 0.5
        return dot / scale if 0 < scale < float("inf") else None


class SignalToNoise:
    """A moving average of the cosines of a run's steps, and the signal-to-noise ratio that follows from it."""

    def __init__(self, decay: float = 0.9) -> None:
        self.decay = decay
        self.sums = torch.zeros(2, dtype=torch.float64)
        """Decayed sums of the cosines and of ones, part of a checkpoint."""

    def update(self, cosine: float) -> float:
        """Add a step's cosine; returns `signal_to_noise` of the average so far."""
        self.sums = self.decay * self.sums + (1 - self.decay) * torch.tensor([cosine, 1.0], dtype=torch.float64)
        total, weight = self.sums.tolist()
        return signal_to_noise(total / weight)


def signal_to_noise(cosine: float) -> float:
    """|g|^2 / E|noise|^2 of the mean of two halves whose gradients have this average cosine; 0 if it is negative."""
    return 2 * max(0.0, cosine) / max(1e-6, 1 - cosine)
