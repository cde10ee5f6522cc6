"""The order of samples: a permutation an epoch, nothing lost between epochs, the same from any starting step."""

from __future__ import annotations

import pytest

from data.order import EpochOrder


@pytest.mark.parametrize(("n", "batch"), [(10, 4), (10, 5), (3, 7), (1, 1)])
def test_every_epoch_visits_every_sample_once(n: int, batch: int) -> None:
    order = EpochOrder(n, seed=3)
    stream = [index for step in range(6 * n) for index in order.position(step, batch)]
    for epoch in range(len(stream) // n):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_steps_are_stateless() -> None:
    forward = EpochOrder(100, seed=1)
    steps = [forward.position(step, 8) for step in range(40)]
    resumed = EpochOrder(100, seed=1)
    assert [resumed.position(step, 8) for step in reversed(range(40))] == steps[::-1]


def test_order_is_fixed_across_releases() -> None:
    # A changed order would break the resuming of old runs.
    assert EpochOrder(8, seed=0).position(0, 16) == [5, 0, 2, 6, 7, 4, 1, 3, 4, 6, 7, 5, 3, 2, 0, 1]


def test_seeds_and_epochs_differ() -> None:
    first = EpochOrder(50, seed=0)
    assert first.permutation(0).tolist() != first.permutation(1).tolist()
    assert first.permutation(1).tolist() != EpochOrder(50, seed=1).permutation(0).tolist()


@pytest.mark.parametrize(("step", "batch"), [(-1, 4), (0, 0)])
def test_bad_positions(step: int, batch: int) -> None:
    with pytest.raises(ValueError, match="step must be at least 0 and batch at least 1"):
        EpochOrder(5, seed=0).position(step, batch)


def test_an_order_of_nothing() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        EpochOrder(0, seed=0)
