"""How much of an update is signal: the gradients of two halves of its conditions, compared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MAX_VALUES = 1 << 24
"""Gradient values that are compared (64 MiB): of all matrices if they have no more, else of evenly spread ones."""


class HalfGradients:
    """Compares what the first half of a pass's conditions added to the gradients with what the second half did.

    Both halves estimate one expected gradient g, with independent noise. If their cosine is c on average, the mean of the
    two, which is what a step follows, has |g|^2 / E|noise|^2 = 2 c / (1 - c).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], conditions: int) -> None:
        """Call with gradients of zero."""
        every = max(1, -(-sum(p.numel() for p in parameters) // MAX_VALUES))
        self._parameters = list(parameters)[::every]
        self._conditions, self._added = conditions, 0
        self._first: list[Tensor] = []

    def added_condition(self) -> None:
        """The gradients of one more condition are in."""
        self._added += 1
        if self._conditions > 1 and self._added == self._conditions // 2:
            self._first = [p.grad.clone() for p in self._parameters if p.grad is not None]

    @torch.no_grad()
    def cosine(self) -> float | None:
        """Of the halves' gradients, in [-1, 1]; None if there are no two halves, or one of them is zero or not finite."""
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
        """Decayed sums of the cosines and of ones, which a checkpoint has to keep."""

    def update(self, cosine: float) -> float:
        """Take in a step's cosine; returns `signal_to_noise` of the average so far."""
        self.sums = self.decay * self.sums + (1 - self.decay) * torch.tensor([cosine, 1.0], dtype=torch.float64)
        total, weight = self.sums.tolist()
        return signal_to_noise(total / weight)


def signal_to_noise(cosine: float) -> float:
    """|g|^2 / E|noise|^2 of the mean of two halves whose gradients have this cosine on average; 0 for negative ones."""
    return 2 * max(0.0, cosine) / max(1e-6, 1 - cosine)
