"""Prefix credit against the exact policy gradient, on rewards that a prefix decides, and in portions."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from lessons import lesson, sampled
from torch import Tensor, nn

from learner.credit.prefix import PrefixCredit
from learner.grpo.config import LearnerConfig
from learner.grpo.loss import grpo_loss
from learner.grpo.update import GrpoLearner
from learner.lesson import Lesson

VOCAB = 3


def method(patch_nums: tuple[int, ...], norm: str = "none", slopes: Tensor | None = None) -> PrefixCredit:
    """With `slopes` b_2 to b_S of earlier updates."""
    quantize = SimpleNamespace(embedding=nn.Embedding(VOCAB, 2), patch_nums=patch_nums)
    found = PrefixCredit(SimpleNamespace(quantize=quantize), norm)
    if slopes is not None:
        found.sums = torch.stack([slopes.double(), torch.ones(len(slopes), dtype=torch.float64)])
    return found


def scored(rewards: Tensor, early: Tensor, length: int) -> Lesson:
    """Rewards [B, G], and those of the unfinished images [B, G, S - 1]."""
    return lesson(torch.zeros(*rewards.shape, length), rewards, torch.cat([early, rewards[..., None]], dim=-1))


def test_two_by_hand():
    rewards, early = torch.tensor([[3.0, 1.0]]), torch.tensor([[[2.0], [1.0]]])
    (credit,) = method((1, 2), slopes=torch.tensor([0.5])).assign([scored(rewards, early, 5)])
    expected = torch.tensor([2.0, 1.5, 1.5, 1.5, 1.5])  # 3 - 1, and for the second scale less half of 2 - 1
    torch.testing.assert_close(credit.tokens, torch.stack([expected, -expected])[None])
    (divided,) = method((1, 2), "std", torch.tensor([0.5])).assign([scored(rewards, early, 5)])
    torch.testing.assert_close(divided.tokens, credit.tokens / 2**0.5)


def test_the_expected_update_is_the_exact_policy_gradient_whatever_the_slopes():
    """Over all groups of two of all sequences of three scales of one token, where everything depends on what came before."""
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(*[VOCAB] * n, generator=generator, dtype=torch.float64).requires_grad_() for n in (1, 2, 3)]
    sequences = torch.tensor(list(itertools.product(range(VOCAB), repeat=3)))  # [N, 3]
    columns = [logits[n].log_softmax(-1)[tuple(sequences[:, : n + 1].T)] for n in range(3)]
    logp = torch.stack(columns, dim=1)
    probability = logp.sum(1).exp()
    rewards = torch.randn(len(sequences), generator=generator, dtype=torch.float64)
    first, second = (torch.randn(*[VOCAB] * n, generator=generator, dtype=torch.float64) for n in (1, 2))
    early = torch.stack([first[sequences[:, 0]], second[sequences[:, 0], sequences[:, 1]]], dim=1)

    exact = torch.autograd.grad(probability @ rewards, logits, retain_graph=True)

    one, other = torch.cartesian_prod(torch.arange(len(sequences)), torch.arange(len(sequences))).unbind(1)
    groups = torch.stack([one, other], dim=1)
    weights = (probability[one] * probability[other]).detach()
    tokens = logp[groups].flatten(0, 1)
    nothing = tokens.detach()
    for slopes in (torch.zeros(2), torch.ones(2), torch.tensor([0.7, -1.3])):
        (credit,) = method((1, 1, 1), slopes=slopes).assign([scored(rewards[groups], early[groups], 3)])
        even = torch.ones(3, dtype=torch.float64)
        terms = grpo_loss(tokens, nothing, nothing, credit.tokens.flatten(0, 1), even, beta=0.0, on_policy=True)
        loss = weights @ terms.total.unflatten(0, (-1, 2)).mean(1)
        found = torch.autograd.grad(-loss, logits, retain_graph=True)
        for ours, wanted in zip(found, exact, strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-9)


def test_what_a_prefix_decides_teaches_no_later_scale():
    """The reward is twice that of the first scale's image: the slope is found, and from then on nothing is left."""
    found = method((1, 2, 3))
    generator = torch.Generator().manual_seed(0)
    early = torch.randn(4, 6, 2, generator=generator)
    rewards = 2 * early[..., 0]
    (before,) = found.assign([scored(rewards, early, 14)])
    assert before.tokens[..., 1:].abs().min() > 0  # nothing is known yet
    torch.testing.assert_close(found.slopes()[:2], torch.tensor([0.0, 2.0]))
    (after,) = found.assign([scored(rewards, early, 14)])
    torch.testing.assert_close(after.tokens[..., 1:5], torch.zeros(4, 6, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(after.tokens[..., 0], before.tokens[..., 0])


def test_slopes_are_averaged_spoiled_groups_left_out_and_kept_by_a_checkpoint():
    found = method((1, 2))
    early = torch.tensor([[[1.0], [-1.0]], [[1.0], [float("nan")]]])
    steep, flat = torch.tensor([[3.0, -3.0], [0.0, 1.0]]), torch.zeros(2, 2)
    (credit,) = found.assign([scored(steep, early, 5)])
    assert credit.tokens[0].isfinite().all()
    assert found.slopes().tolist() == pytest.approx([0, 3])
    found.assign([scored(flat, early, 5)])
    assert found.slopes().tolist() == pytest.approx([0, 3 * 0.9 / 1.9])
    other = method((1, 2))
    other.load_state_dict(found.state_dict())
    assert torch.equal(other.slopes(), found.slopes())


@pytest.mark.parametrize("changes", [{"micro_batch": 1}, {"micro_batch": 3, "recompute": True}])
def test_portions_do_not_change_the_gradient(changes):
    gradients = []
    for some in ({}, changes):
        adapters, state, rows, rewards = sampled()
        detail = torch.randn(*rewards.shape, 3, generator=torch.Generator().manual_seed(4))
        learner = GrpoLearner(adapters, LearnerConfig(lora_rank=4, grad_clip=1e9, credit="prefix", **some))
        learner.credit.sums = torch.tensor([[0.5, 1.5], [1.0, 1.0]], dtype=torch.float64)
        learner.update(0, Lesson(state, rows, learner.reference(state, rows), rewards, detail).split(1))
        gradients.append([learner.optimizer.state[p]["exp_avg"].clone() for p in adapters.parameters()])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-3)
    assert any(g.any() for g in gradients[0])


def test_a_learner_keeps_the_slopes_in_its_checkpoint():
    adapters, state, rows, rewards = sampled()
    detail = torch.randn(*rewards.shape, 3, generator=torch.Generator().manual_seed(4))
    config = LearnerConfig(lora_rank=4, credit="prefix")
    learner, other = GrpoLearner(adapters, config), GrpoLearner(adapters, config)
    learner.update(0, Lesson(state, rows, learner.reference(state, rows), rewards, detail).split(1))
    other.load_state_dict(learner.state_dict())
    assert learner.credit.slopes()[1:].any()
    assert torch.equal(other.credit.slopes(), learner.credit.slopes())
