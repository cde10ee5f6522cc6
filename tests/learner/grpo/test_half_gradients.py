"""The signal of an update, told from its two halves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from learner.grpo.half_gradients import HalfGradients, SignalToNoise, signal_to_noise


def halves(parts: list[list[float]]) -> float | None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.zeros(2)
    comparison = HalfGradients([parameter], len(parts))
    for part in parts:
        parameter.grad += torch.tensor(part)
        comparison.added_condition()
    return comparison.cosine()


def test_the_cosine_is_that_of_the_halves():
    assert halves([[1.0, 0.0], [2.0, 0.0]]) == pytest.approx(1)
    assert halves([[1.0, 0.0], [0.0, 1.0]]) == pytest.approx(0)
    assert halves([[1.0, 0.0], [0.0, 1.0], [3.0, 3.0], [-2.0, -2.0]]) == pytest.approx(1)
    assert halves([[1.0, 0.0], [-0.5, 0.0], [-0.5, 0.0]]) == pytest.approx(-1)


@pytest.mark.parametrize("parts", [[], [[1.0, 2.0]], [[0.0, 0.0], [1.0, 1.0]], [[float("nan"), 0.0], [1.0, 1.0]]])
def test_without_two_halves_there_is_none(parts):
    assert halves(parts) is None


def test_the_signal_follows_from_the_mean_cosine():
    generator = torch.Generator().manual_seed(0)
    signal, noise, size = 1.0, 2.0, 4000
    mean = torch.full((size,), signal / size**0.5, dtype=torch.float64)
    first, second = (
        mean + noise / size**0.5 * torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    cosine = float(first @ second / first.norm() / second.norm())
    assert signal_to_noise(cosine) == pytest.approx(signal**2 / (noise**2 / 2), rel=0.3)
    assert signal_to_noise(-0.1) == 0


def test_the_average_over_steps_begins_with_the_first_and_goes_on_after_a_checkpoint():
    whole, parts = SignalToNoise(), SignalToNoise()
    assert whole.update(0.5) == pytest.approx(signal_to_noise(0.5))
    parts.sums = whole.sums.clone()
    assert whole.update(0.1) == parts.update(0.1) == pytest.approx(signal_to_noise((0.9 * 0.5 + 0.1) / 1.9))
