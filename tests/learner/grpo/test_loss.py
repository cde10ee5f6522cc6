from __future__ import annotations

import math

import pytest
import torch

from learner.grpo.loss import grpo_loss
from learner.grpo.panw import panw_weights

WEIGHTS = panw_weights((1, 2))
LENGTH = 5


def logp(rows: int, seed: int = 0) -> torch.Tensor:
    return -torch.rand(rows, LENGTH, generator=torch.Generator().manual_seed(seed)) - 0.1


def test_on_policy_gradient_is_minus_advantage_times_score():
    new = logp(3).requires_grad_()
    advantages = torch.tensor([1.5, -0.5, 0.0])
    terms = grpo_loss(new, logp(3, seed=1), logp(3, seed=2), advantages, WEIGHTS, beta=0.0, on_policy=True)
    terms.total.sum().backward()
    torch.testing.assert_close(new.grad, -advantages[:, None] * WEIGHTS)
    for ratio in (terms.ratio_mean, terms.ratio_min, terms.ratio_max):
        assert ratio.eq(1).all()
    assert terms.clip_frac.eq(0).all()
    torch.testing.assert_close(terms.policy.detach(), -advantages)


def test_on_policy_equals_old_at_the_same_weights():
    new = logp(3)
    advantages = torch.tensor([1.0, -1.0, 2.0])
    ref = logp(3, seed=2)
    gradients = []
    for on_policy in (True, False):
        leaf = new.clone().requires_grad_()
        grpo_loss(leaf, new, ref, advantages, WEIGHTS, on_policy=on_policy).total.sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "moves"),
    [
        (1.5, 1.0, 1.2, False),  # already more likely than the band allows: nothing more to gain
        (0.5, 1.0, 0.5, True),  # a good token that became unlikely is pulled back
        (1.5, -1.0, -1.5, True),  # a bad token that became likely is pushed down
        (0.5, -1.0, -0.8, False),
        (1.1, 1.0, 1.1, True),
        (0.9, -1.0, -0.9, True),
    ],
)
def test_clip_sides(ratio, advantage, objective, moves):
    new = logp(1).requires_grad_()
    old = new.detach() - math.log(ratio)
    terms = grpo_loss(new, old, new.detach(), torch.tensor([advantage]), WEIGHTS, clip_eps=0.2, beta=0.1)
    assert terms.policy.item() == pytest.approx(-objective, rel=1e-5)
    assert terms.clip_frac.item() == (0 if moves else 1)
    terms.policy.sum().backward()
    expected = -advantage * ratio * WEIGHTS if moves else torch.zeros(LENGTH)
    torch.testing.assert_close(new.grad[0], expected)


def test_kl_is_weighted_reported_raw_and_scaled_by_beta():
    new, ref = logp(2), logp(2, seed=3)
    terms = grpo_loss(new, new, ref, torch.zeros(2), WEIGHTS, beta=0.25, kl_kind="k1")
    torch.testing.assert_close(terms.kl_tokens, new - ref)
    torch.testing.assert_close(terms.raw_kl, ((new - ref) * WEIGHTS).sum(dim=1))
    torch.testing.assert_close(terms.total, 0.25 * terms.raw_kl)


def test_far_ratio_stays_finite():
    new = torch.zeros(1, LENGTH, requires_grad=True)
    terms = grpo_loss(new, torch.full((1, LENGTH), -300.0), new.detach(), torch.tensor([-1.0]), WEIGHTS)
    terms.total.sum().backward()
    assert terms.ratio_max.item() == pytest.approx(math.exp(10), rel=1e-5)
    assert new.grad.isfinite().all()


def test_a_broken_trajectory_stays_in_its_row():
    new = logp(3)
    new[1, 2] = float("nan")
    terms = grpo_loss(new, logp(3), logp(3), torch.ones(3), WEIGHTS)
    assert terms.total.isfinite().tolist() == [True, False, True]
