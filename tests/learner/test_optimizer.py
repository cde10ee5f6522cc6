"""AdamW in the host's memory: the arithmetic and the state of AdamW beside the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from learner.optimizer import HostAdamW, build_optimizer, load_moments

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 5), (7,), (2, 2))]


def step(optimizer: torch.optim.Optimizer, own: list[nn.Parameter], number: int) -> None:
    """The last parameter has no gradient in odd steps."""
    generator = torch.Generator().manual_seed(number)
    for i, parameter in enumerate(own):
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = None if i == 2 and number % 2 else gradient
    optimizer.step()
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in own)


def test_the_arithmetic_is_the_same():
    beside, in_host = parameters(), parameters()
    optimizers = [build_optimizer(beside, "device", **SETTINGS), build_optimizer(in_host, "cpu", **SETTINGS)]
    assert isinstance(optimizers[1], HostAdamW)
    for number in range(4):
        if number == 2:  # a rollback sets the parameters, and tells nobody
            for own in (*beside, *in_host):
                own.data.fill_(0.25)
        for optimizer, own in zip(optimizers, (beside, in_host), strict=True):
            step(optimizer, own, number)
        assert all(map(torch.equal, beside, in_host))


@pytest.mark.parametrize(("before", "after"), [("cpu", "device"), ("device", "cpu"), ("cpu", "cpu")])
def test_each_goes_on_from_the_others_state(before, after, tmp_path):
    whole, first = parameters(), parameters()
    uninterrupted, stopped = (build_optimizer(p, w, **SETTINGS) for p, w in ((whole, "device"), (first, before)))
    for number in range(2):
        step(uninterrupted, whole, number)
        step(stopped, first, number)
    torch.save(stopped.state_dict(), tmp_path / "optimizer.pt")
    resumed = build_optimizer(first, after, **SETTINGS)
    load_moments(resumed, torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for number in range(2, 4):
        step(uninterrupted, whole, number)
        step(resumed, first, number)
    assert all(map(torch.equal, whole, first))


def test_resuming_takes_the_moments_and_keeps_the_settings_of_now():
    """With torch's own loading a run resumed with another learning rate would go on with the old one."""
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    before = build_optimizer(weights[:1], "device", lr=0.1, weight_decay=0.5)
    weights[0].grad = torch.ones(3)
    before.step()
    after = build_optimizer(weights[1:], "device", lr=0.01, weight_decay=0.0)
    load_moments(after, before.state_dict())
    assert (after.param_groups[0]["lr"], after.param_groups[0]["weight_decay"]) == (0.01, 0.0)
    ours, theirs = after.state[weights[1]], before.state[weights[0]]
    assert all(torch.equal(ours[name], theirs[name]) for name in ("step", "exp_avg", "exp_avg_sq"))
