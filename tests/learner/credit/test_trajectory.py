from __future__ import annotations

import pytest
import torch

from learner.credit.trajectory import group_advantages
from stylevar.errors import UserError


def test_zero_mean_and_unit_std_per_group():
    rewards = torch.randn(5, 16) * 3 - 1
    result = group_advantages(rewards)
    torch.testing.assert_close(result.values.mean(dim=1), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(result.values.std(dim=1), torch.ones(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.mean, rewards.mean(dim=1))
    assert result.frac_zero_std == 0


def test_two_by_hand():
    result = group_advantages(torch.tensor([[1.0, 3.0]]))
    torch.testing.assert_close(result.std, torch.tensor([2.0**0.5]))
    torch.testing.assert_close(result.values, torch.tensor([[-1.0, 1.0]]) / 2**0.5)


def test_floor_keeps_noise_small():
    result = group_advantages(torch.tensor([[0.5, 0.5, 0.5], [1.0, 1.0001, 1.0], [0.0, 1.0, 2.0]]))
    assert result.values[0].eq(0).all()
    assert result.values[1].abs().max() < 0.01
    assert result.frac_zero_std == pytest.approx(2 / 3)


def test_norm_none_only_centres():
    rewards = torch.tensor([[1.0, 2.0, 6.0]])
    torch.testing.assert_close(group_advantages(rewards, norm="none").values, torch.tensor([[-2.0, -1.0, 3.0]]))


def test_bad_reward_stays_in_its_group():
    rewards = torch.tensor([[0.0, float("nan"), 1.0], [0.0, 1.0, 2.0]])
    values = group_advantages(rewards).values
    assert values[0].isnan().all()
    assert values[1].isfinite().all()


def test_group_of_one():
    with pytest.raises(UserError, match=r"--group 1.*2 or more"):
        group_advantages(torch.zeros(4, 1))


def test_leave_one_out_compares_with_the_others():
    rewards = torch.tensor([[1.0, 2.0, 6.0]])
    torch.testing.assert_close(group_advantages(rewards, norm="leave-one-out").values, torch.tensor([[-3.0, -1.5, 4.5]]))
