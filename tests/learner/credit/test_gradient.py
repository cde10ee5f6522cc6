"""Gradient credit against exact policy gradients, finite differences, and itself in other portions."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import small_model
import torch
from lessons import lesson, sampled
from torch import Tensor, nn

from learner.credit.gradient import GradientCredit, token_slopes
from learner.grpo.config import LearnerConfig
from learner.grpo.loss import code_loss
from learner.grpo.update import GrpoLearner
from learner.lesson import Lesson
from stylevar.contracts import Trajectories
from stylevar.logprobs import token_terms

VOCAB, DIM, LENGTH, WIDTH = 7, 3, 4, 5


class OneScale:
    """In place of a VQ-VAE: a codebook, and pictures that are half the tokens' vectors, so that [0, 1] or [-1, 1] is one."""

    def __init__(self) -> None:
        embedding = nn.Embedding(VOCAB, DIM, dtype=torch.float64).requires_grad_(False)
        self.quantize = SimpleNamespace(embedding=embedding, patch_nums=(2,), vectors_to_fhat=lambda vectors: vectors)

    def fhat_to_img(self, f_hat: Tensor) -> Tensor:
        return 2 * f_hat


def policy() -> tuple[nn.Linear, Tensor]:
    """A head and its inputs [1, G, L, C]; all trajectories of a group have the same distributions."""
    torch.manual_seed(1)
    head = nn.Linear(WIDTH, VOCAB, dtype=torch.float64).requires_grad_(False)
    return head, torch.randn(1, 1, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)


def estimated(reward, curvature: bool, temperature: float = 1.0) -> tuple[Tensor, Tensor, GradientCredit]:
    """The estimate of the gradient of E[R] with respect to the head's input, and the exact one.

    `reward` takes vectors [..., L, D] and is a sum over the tokens, so that the exact one needs no enumeration of sequences.
    """
    head, x = policy()
    vae = OneScale()
    codebook = vae.quantize.embedding.weight
    probs = (head(x) / temperature).softmax(-1)  # [1, 1, L, V]
    group = 6
    tokens = torch.multinomial(probs[0, 0].detach(), group, replacement=True).t()[None]  # [1, G, L]
    vectors = codebook[tokens].requires_grad_()
    rewards = reward(vectors).sum(-1)
    (slopes,) = torch.autograd.grad(rewards.sum(), vectors)
    method = GradientCredit(vae, curvature=curvature)
    (credit,) = method.assign([lesson(tokens, rewards.detach(), slopes)])
    one = dataclasses.replace(credit.codes, slopes=credit.codes.slopes, curvature=credit.codes.curvature.double())
    terms = token_terms(head, x.expand(1, group, LENGTH, WIDTH), tokens, temperature, values=one)
    weights = torch.ones(LENGTH, dtype=torch.float64)
    loss = code_loss(terms.gain[0], torch.zeros(group, LENGTH, dtype=torch.float64), weights, beta=0).total.mean()
    (found,) = torch.autograd.grad(-loss, x)
    of_every_code = reward(codebook[:, None].expand(VOCAB, LENGTH, DIM)).t()  # [L, V]
    (exact,) = torch.autograd.grad((probs[0, 0] * of_every_code).sum(), x)
    return found, exact, method


def test_a_linear_reward_gives_the_exact_policy_gradient():
    slope = torch.randn(LENGTH, DIM, dtype=torch.float64)
    for temperature in (1.0, 0.5):
        found, exact, _ = estimated(lambda h: (h * slope).sum(-1), curvature=False, temperature=temperature)
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)


def test_a_quadratic_reward_is_exact_with_the_measured_curvature_only():
    wanted = torch.randn(LENGTH, DIM, dtype=torch.float64)

    def reward(h: Tensor) -> Tensor:
        return -0.5 * 1.7 * (h - wanted).square().sum(-1)

    found, exact, method = estimated(reward, curvature=True)
    assert method.curvature().tolist() == pytest.approx([1.7])
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-8)
    found, exact, _ = estimated(reward, curvature=False)
    assert (found - exact).abs().max() > 0.05


def test_the_curvature_of_a_convex_reward_counts_as_none_and_survives_a_checkpoint():
    _, _, method = estimated(lambda h: h.square().sum(-1), curvature=True)
    assert method.curvature().tolist() == [0.0]
    _, _, method = estimated(lambda h: -h.square().sum(-1), curvature=True)
    other = GradientCredit(OneScale())
    other.load_state_dict(method.state_dict())
    assert other.curvature().tolist() == method.curvature().tolist() == pytest.approx([2.0])


def test_slopes_are_those_of_the_decoder():
    """Against finite differences, in fp64, in any portions."""
    vae = small_model.build().vae.double()
    length = sum(p * p for p in vae.quantize.patch_nums)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 32, (3, length), generator=generator)
    pull = torch.randn(3, 3, 12, 12, generator=generator, dtype=torch.float64)
    found = token_slopes(vae, tokens, pull, at_once=2)
    torch.testing.assert_close(found, token_slopes(vae, tokens, pull, at_once=8))

    def reward(vectors: Tensor) -> Tensor:
        with torch.no_grad():
            return ((vae.fhat_to_img(vae.quantize.vectors_to_fhat(vectors)) + 1) / 2 * pull).sum((1, 2, 3))

    vectors = vae.quantize.embedding(tokens).detach()
    towards = torch.randn(vectors.shape, generator=generator, dtype=torch.float64)
    step = 1e-5
    slope = (reward(vectors + step * towards) - reward(vectors - step * towards)) / (2 * step)
    torch.testing.assert_close((found * towards).sum((1, 2)), slope, rtol=1e-4, atol=1e-6)


def slopes_of(rows: Trajectories) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows.images.shape, generator=generator).to(torch.bfloat16)


@pytest.mark.parametrize("estimator", ["k3", "full"])
@pytest.mark.parametrize("changes", [{"micro_batch": 1}, {"micro_batch": 3, "recompute": True}, {"credit_batch": 1}])
def test_portions_do_not_change_the_gradient(changes, estimator):
    gradients = []
    for some in ({}, changes):
        adapters, state, rows, rewards = sampled()
        config = LearnerConfig(lora_rank=4, grad_clip=1e9, credit="gradient", kl_estimator=estimator, **some)
        learner = GrpoLearner(adapters, config)
        result = learner.update(0, Lesson(state, rows, learner.reference(state, rows), rewards, slopes_of(rows)).split(1))
        gradients.append([learner.optimizer.state[p]["exp_avg"].clone() for p in adapters.parameters()])
    assert result.metrics["credit/spread"] > 0
    assert result.metrics["kl/raw"] > 0
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-3)
    assert any(g.any() for g in gradients[0])


def test_a_trajectory_that_is_dropped_leaves_the_others_their_gradient():
    adapters, state, rows, rewards = sampled()
    learner = GrpoLearner(adapters, LearnerConfig(lora_rank=4, credit="gradient", kl_limit=1e9))
    before = adapters.state()
    slopes = slopes_of(rows)
    slopes[0, 1] = float("nan")
    result = learner.update(0, Lesson(state, rows, learner.reference(state, rows), rewards, slopes).split(1))
    assert result.metrics["guard/dropped"] == 1
    assert learner.credit.curvature().isfinite().all()
    after = adapters.state()
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(before[name], value) for name, value in after.items())


def test_without_the_rewards_gradient_there_is_no_gradient_credit():
    adapters, state, rows, rewards = sampled()
    learner = GrpoLearner(adapters, LearnerConfig(lora_rank=4, credit="gradient"))
    with pytest.raises(ValueError, match="detail='gradient'"):
        learner.update(0, Lesson(state, rows, learner.reference(state, rows), rewards).split(1))
