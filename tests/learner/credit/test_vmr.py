"""Value as middle return: soft values by hand, expected updates by enumeration, and the groups that a sampler draws."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import small_model
import torch
from lessons import lesson
from torch import Tensor

from launch.configs.grpo import GrpoConfig, demo
from learner.credit.trajectory import group_advantages
from learner.credit.vmr import VmrCredit
from learner.grpo.config import LearnerConfig
from learner.grpo.loss import grpo_loss
from learner.grpo.update import GrpoLearner
from learner.lesson import Lesson
from rollout.config import RolloutConfig
from rollout.sampler import GroupSampler
from stylevar.branching import Branching
from stylevar.contracts import PolicyVersion
from stylevar.errors import UserError

VOCAB, SCALES, LENGTH = 3, (1, 2), 5
PREFIXES, REST = 0, 3
"""A step that compares prefixes, and one that trains the tokens after them."""
VERSION = PolicyVersion(0, 0)


def scored(rewards: Tensor, step: int, length: int = LENGTH) -> Lesson:
    """A lesson with rewards [B, G] for groups as they branch in `step`."""
    some = lesson(torch.zeros(*rewards.shape, length), rewards, rewards)
    seeds = Branching(1).seeds(0, step, some.trajectories.keys, rewards.shape[1])
    return dataclasses.replace(some, trajectories=dataclasses.replace(some.trajectories, seeds=seeds))


def test_soft_values_of_pairs_by_hand():
    rewards = torch.tensor([[0.0, math.log(3), 1.0, 1.0]])
    (credit,) = VmrCredit(SCALES, eta=1.0, norm="none").assign([scored(rewards, PREFIXES)])
    first, second = math.log(2), 1.0  # log((1 + 3) / 2), and the log of a mean of equal numbers
    half = (first - second) / 2
    expected = torch.tensor([half, half, -half, -half])
    torch.testing.assert_close(credit.tokens[0, :, 0], expected)
    assert not credit.tokens[..., 1:].any()


@pytest.mark.parametrize(("norm", "first"), [("std", 0.5**0.5), ("leave-one-out", 2.0), ("none", 1.0)])
def test_prefixes_are_compared_as_a_group_of_their_number(norm, first):
    """Two prefixes whose continuations are equal, and are worth 2 and 0."""
    (credit,) = VmrCredit(SCALES, norm=norm).assign([scored(torch.tensor([[2.0, 2.0, 0.0, 0.0]]), PREFIXES)])
    torch.testing.assert_close(credit.tokens[0, :, 0], first * torch.tensor([1.0, 1.0, -1.0, -1.0]))
    assert credit.trajectory.mean.item() == 1.0


def test_eta_says_how_much_the_better_continuation_counts():
    rewards = torch.tensor([[3.0, 0.0, 2.0, 2.0]])
    values = {}
    for eta in (0.1, 100.0):
        (credit,) = VmrCredit(SCALES, eta=eta, norm="none").assign([scored(rewards, PREFIXES)])
        values[eta] = credit.tokens[0, 0, 0].item()
    assert values[0.1] == pytest.approx((3 - 2) / 2, abs=0.05)  # of the best ones
    assert values[100.0] == pytest.approx((1.5 - 2) / 2, abs=0.05)  # of the means


def test_a_group_with_one_prefix_trains_the_rest_as_grpo_does():
    rewards = torch.tensor([[0.0, 2.0, 1.0, 5.0], [1.0, 4.0, 1.0, 1.0]])
    (credit,) = VmrCredit(SCALES).assign([scored(rewards, REST)])
    assert not credit.tokens[..., 0].any()
    expected = group_advantages(rewards).values
    assert torch.equal(credit.tokens[..., 1:], expected[..., None].expand(2, 4, 4))
    assert torch.equal(credit.trajectory.values, expected)


@pytest.mark.parametrize("step", [PREFIXES, REST])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_spoils_its_group_alone(step, bad):
    rewards = torch.tensor([[0.0, bad, 1.0, 5.0], [1.0, 4.0, 1.0, 1.0]])
    (credit,) = VmrCredit(SCALES).assign([scored(rewards, step)])
    assert credit.tokens[0].isnan().any(-1).all()
    assert credit.tokens[1].isfinite().all()


def policy() -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the first token and of the second after each first one; rewards of both."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(VOCAB, generator=generator, dtype=torch.float64).requires_grad_()
    second = torch.randn(VOCAB, VOCAB, generator=generator, dtype=torch.float64).requires_grad_()
    return first, second, torch.randn(VOCAB, VOCAB, generator=generator, dtype=torch.float64)


def update(credit: Tensor, logp: Tensor, probability: Tensor, parameters: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The expected step, of advantages and log-probs [N, G, L] of groups with their probabilities [N]."""
    tokens, nothing = logp.flatten(0, 1), logp.flatten(0, 1).detach()
    even = torch.ones(2, dtype=torch.float64)
    terms = grpo_loss(tokens, nothing, nothing, credit.flatten(0, 1), even, beta=0.0, on_policy=True)
    loss = probability.detach() @ terms.total.unflatten(0, logp.shape[:2]).mean(1)
    return torch.autograd.grad(-loss, parameters, retain_graph=True)


@pytest.mark.parametrize("eta", [1.0, 0.2])
def test_the_prefix_climbs_its_expected_soft_value(eta):
    """Over all groups of two prefixes with two continuations each. Of two, the mean takes away half of a difference."""
    first, second, table = policy()
    groups = torch.tensor(list(itertools.product(range(VOCAB), repeat=6)))  # a a1 a2 b b1 b2
    prefix, rest = groups[:, [0, 0, 3, 3]], groups[:, [1, 2, 4, 5]]
    of_prefix, of_rest = first.log_softmax(0)[prefix], second.log_softmax(1)[prefix, rest]
    probability = (of_prefix[:, ::2].sum(1) + of_rest.sum(1)).exp()
    (credit,) = VmrCredit((1, 1), 1, eta, "none").assign([scored(table[prefix, rest], PREFIXES, 2)])
    found = update(credit.tokens, torch.stack([of_prefix, of_rest], dim=-1), probability, (first, second))

    pairs = torch.logaddexp(table[:, :, None] / eta, table[:, None, :] / eta)
    later = second.softmax(1).detach()
    value = (later[:, :, None] * later[:, None, :] * eta * (pairs - math.log(2))).sum((1, 2))
    (exact,) = torch.autograd.grad(first.softmax(0) @ value, first)
    torch.testing.assert_close(found[0], exact / 2, rtol=1e-5, atol=1e-7)  # advantages are fp32
    assert not found[1].any()


def test_the_rest_climbs_the_expected_reward_after_its_prefix():
    first, second, table = policy()
    groups = torch.tensor(list(itertools.product(range(VOCAB), repeat=5)))  # one prefix, four continuations
    prefix, rest = groups[:, [0, 0, 0, 0]], groups[:, 1:]
    of_prefix, of_rest = first.log_softmax(0)[prefix], second.log_softmax(1)[prefix, rest]
    probability = (of_prefix[:, 0] + of_rest.sum(1)).exp()
    (credit,) = VmrCredit((1, 1), 1, norm="leave-one-out").assign([scored(table[prefix, rest], REST, 2)])
    found = update(credit.tokens, torch.stack([of_prefix, of_rest], dim=-1), probability, (first, second))
    (exact,) = torch.autograd.grad(first.softmax(0).detach() @ (second.softmax(1) * table).sum(1), second)
    torch.testing.assert_close(found[1], exact, rtol=1e-5, atol=1e-7)
    assert not found[0].any()


@pytest.mark.parametrize("changes", [{"micro_batch": 1}, {"micro_batch": 3, "recompute": True}])
@pytest.mark.parametrize("step", [PREFIXES, REST])
def test_a_sampler_draws_such_groups_and_portions_do_not_matter(step, changes):
    gradients = []
    for at_once, some in ((0, {}), (1, changes)):
        model = small_model.build()
        adapters = small_model.adapt(model)
        config = LearnerConfig(lora_rank=4, grad_clip=1e9, kl_beta=0.0, credit="vmr", credit_middle=2, **some)
        sampler = GroupSampler(model, RolloutConfig(group=4, rollout_batch=at_once), branch_after=config.branch_after)
        batch = small_model.batch(model, 2)
        rows = sampler.sample(batch, 0, step, VERSION)
        prefix, rest = rows.tokens.split([5, 9], dim=-1)
        assert torch.equal(prefix[:, 0::2], prefix[:, 1::2])
        assert torch.equal(prefix[:, 0], prefix[:, 2]) == (step == REST)
        assert not torch.equal(rest[:, 0], rest[:, 1])
        rewards = torch.randn(2, 4, generator=torch.Generator().manual_seed(3))
        state = sampler.conditions.get(batch)
        learner = GrpoLearner(adapters, config)
        learner.update(step, Lesson(state, rows, learner.reference(state, rows), rewards).split(1))
        gradients.append([learner.optimizer.state[p]["exp_avg"].clone() for p in adapters.parameters()])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-3)
    assert any(g.any() for g in gradients[0])


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="--credit-eta 0: must be positive"):
        LearnerConfig(credit_eta=0)
    with pytest.raises(UserError, match="--credit-middle -1: must be at least 0"):
        LearnerConfig(credit_middle=-1)
    with pytest.raises(UserError, match="--credit-middle 3: the model has 3 scales"):
        GroupSampler(small_model.build(), RolloutConfig(), branch_after=3)
    assert LearnerConfig(credit_middle=2).branch_after is None
    assert LearnerConfig(credit="vmr").branch_after == 0


@pytest.mark.parametrize(("group", "remedy"), [(2, 4), (3, 4), (5, 6)])
def test_a_group_that_cannot_branch_is_refused(group, remedy):
    said = f"^--group {group}: must be even and at least 4 with --credit vmr, .*; give --group {remedy}$"
    with pytest.raises(UserError, match=said):
        GrpoConfig(rollout=RolloutConfig(group=group), learner=LearnerConfig(credit="vmr"))


def test_the_demo_s_groups_are_too_small():
    usual = demo()
    learner = dataclasses.replace(usual.learner, credit="vmr")
    with pytest.raises(UserError, match="^--group 2: must be even and at least 4 with --credit vmr"):
        dataclasses.replace(usual, learner=learner)
