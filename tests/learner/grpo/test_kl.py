"""The estimators' expectations, by exact enumeration of small categoricals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from learner.grpo.kl import kl_estimate


@pytest.fixture
def policies() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    new, ref = logits.log_softmax(dim=-1)
    return new, ref


def true_kl(new: Tensor, ref: Tensor) -> Tensor:
    return (new.exp() * (new - ref)).sum()


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_unbiased(policies, kind):
    new, ref = policies
    torch.testing.assert_close((new.exp() * kl_estimate(new, ref, kind)).sum(), true_kl(new, ref))


def test_k2_is_half_the_mean_square(policies):
    new, ref = policies
    torch.testing.assert_close(kl_estimate(new, ref, "k2"), (new - ref) ** 2 / 2)
    # Close to the KL where the policies are close.
    near = (new + 0.01 * torch.sin(torch.arange(6))).log_softmax(dim=-1)
    torch.testing.assert_close((near.exp() * kl_estimate(near, new, "k2")).sum(), true_kl(near, new), rtol=0.02, atol=0)


def test_paper_has_the_signs_of_k3_reversed_and_is_biased(policies):
    new, ref = policies
    torch.testing.assert_close(kl_estimate(new, ref, "paper"), kl_estimate(ref, new, "k3"))
    assert (new.exp() * kl_estimate(new, ref, "paper")).sum() > 1.1 * true_kl(new, ref)


def test_k3_is_never_negative_and_zero_at_equality(policies):
    new, ref = policies
    assert (kl_estimate(new, ref, "k3") > 0).all()
    for kind in ("k1", "k2", "k3", "paper"):
        assert kl_estimate(new, new, kind).eq(0).all()


@pytest.mark.parametrize(("kind", "slope"), [("k1", 1.0), ("k2", 0.3), ("k3", 1 - 2.718281828459045**-0.3)])
def test_gradient(kind, slope):
    new = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    kl_estimate(new, torch.tensor(-1.3, dtype=torch.float64), kind).backward()
    assert new.grad.item() == pytest.approx(slope)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "paper"])
def test_far_log_ratios_are_clamped(kind):
    new = torch.tensor([-200.0, -0.1], requires_grad=True)
    far = kl_estimate(new, torch.tensor([-0.1, -200.0]), kind)
    assert far.isfinite().all()
    assert far.abs().max() <= 22027
    far.sum().backward()
    assert new.grad.eq(0).all()


def test_unknown_kind():
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")
