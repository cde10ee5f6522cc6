"""The step guard: who may teach, and when nobody does."""

from __future__ import annotations

import pytest
import torch

from learner.grpo.guard import may_teach, too_few_left

NAN, INF = float("nan"), float("inf")


def test_nothing_wrong():
    assert may_teach(torch.tensor([0.1, -2.0]), torch.tensor([0.0, 5.0])).all()


def test_what_is_not_finite_or_too_far_from_the_reference_is_dropped():
    loss = torch.tensor([0.1, NAN, INF, 0.2, 0.3, 0.4, 0.5, 0.6])
    raw_kl = torch.tensor([0.1, 9.0, 0.1, 5.1, 0.1, NAN, 0.1, 0.1])
    assert may_teach(loss, raw_kl).tolist() == [True, False, False, False, True, False, True, True]


@pytest.mark.parametrize(
    ("kept", "total", "skipped"), [(4, 8, False), (3, 8, True), (1, 3, True), (0, 0, True), (1, 1, False)]
)
def test_more_than_half_dropped_skips_the_step(kept, total, skipped):
    assert too_few_left(kept, total) == skipped


def test_nothing_left_skips_the_step():
    assert too_few_left(0, 1, max_dropped=1.0)
