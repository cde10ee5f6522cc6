from __future__ import annotations

import torch

from learner.grpo.guard import guard_trajectories

NAN, INF = float("nan"), float("inf")


def test_nothing_wrong():
    decision = guard_trajectories(torch.tensor([0.1, -2.0]), torch.tensor([0.0, 5.0]))
    assert decision.keep.all()
    assert decision.dropped == 0
    assert not decision.skip_step


def test_counts_by_reason():
    loss = torch.tensor([0.1, NAN, INF, 0.2, 0.3, 0.4, 0.5, 0.6])
    raw_kl = torch.tensor([0.1, 9.0, 0.1, 5.1, 0.1, NAN, 0.1, 0.1])
    decision = guard_trajectories(loss, raw_kl)
    assert decision.keep.tolist() == [True, False, False, False, True, False, True, True]
    assert decision.dropped_nonfinite == 3
    assert decision.dropped_kl == 1
    assert decision.dropped == 4
    assert not decision.skip_step  # half is not more than half


def test_more_than_half_skips_the_step():
    assert guard_trajectories(torch.tensor([NAN, NAN, 0.0]), torch.zeros(3)).skip_step


def test_nothing_left_skips_the_step():
    assert guard_trajectories(torch.tensor([NAN]), torch.zeros(1), max_dropped=1.0).skip_step
