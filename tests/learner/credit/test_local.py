"""Local credit against the exact policy gradient, by hand, and in portions."""

from __future__ import annotations

import itertools

import pytest
import torch
from lessons import lesson, sampled
from torch import Tensor

from learner.credit.local import LocalCredit, window_means, windows
from learner.grpo.config import LearnerConfig
from learner.grpo.loss import grpo_loss
from learner.grpo.update import GrpoLearner
from learner.lesson import Lesson
from stylevar.errors import UserError

SCALES, VOCAB, CELLS = (1, 2), 3, 6
LENGTH = sum(p * p for p in SCALES)


def test_windows_are_the_footprint_and_a_cell_around_it():
    touched = windows(2, 6).gt(0).int().tolist()
    assert touched == [[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]]
    assert windows(3, 4).gt(0).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 1]]
    assert windows(8, 4).gt(0).int().tolist()[:3] == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    torch.testing.assert_close(windows(5, 16).sum(1), torch.ones(5, dtype=torch.float64))


def test_two_maps_by_hand():
    """The first token has the whole reward's advantage, the others that of their windows."""
    maps = torch.zeros(1, 2, 4, 4)
    maps[0, 0, 0, 0] = 16.0
    (credit,) = LocalCredit((1, 4), "none").assign([lesson(torch.zeros(1, 2, 17), maps.mean((2, 3)), maps)])
    expected = torch.zeros(17)
    expected[0] = 1.0  # a reward of 1 against one of 0
    of_corner, of_edge, inside = 16 / 4, 16 / 6, 16 / 9  # cells of a window of 2 x 2, 2 x 3 and 3 x 3
    expected[1], expected[2], expected[5], expected[6] = of_corner, of_edge, of_edge, inside
    torch.testing.assert_close(credit.tokens, torch.stack([expected, -expected])[None])
    torch.testing.assert_close(credit.trajectory.values, torch.tensor([[0.5, -0.5]]))
    (divided,) = LocalCredit((1, 4), "std").assign([lesson(torch.zeros(1, 2, 17), maps.mean((2, 3)), maps)])
    torch.testing.assert_close(divided.tokens, credit.tokens * 2**0.5)


def places(tokens: Tensor, effects: Tensor) -> Tensor:
    """Rewards of the cells, [N, CELLS, CELLS], of tokens [N, L]: not linear, and no farther than the tokens' windows."""
    sides = [windows(side, CELLS).gt(0) for side in SCALES]
    reach = torch.cat([(axis[:, None, :, None] & axis[None, :, None, :]).flatten(0, 1) for axis in sides])
    picture = (effects[torch.arange(LENGTH), tokens] * reach).sum(1)
    wanted = torch.randn(CELLS, CELLS, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return -(picture - wanted).square()


def test_the_expected_update_is_the_exact_policy_gradient():
    """Over all groups of two of all sequences, whose later tokens depend on the first. A window's mean counts as much as
    its share of the image."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(VOCAB, generator=generator, dtype=torch.float64, requires_grad=True)
    later = torch.randn(VOCAB, LENGTH - 1, VOCAB, generator=generator, dtype=torch.float64, requires_grad=True)
    effects = torch.randn(LENGTH, VOCAB, CELLS, CELLS, generator=generator, dtype=torch.float64)
    sequences = torch.tensor(list(itertools.product(range(VOCAB), repeat=LENGTH)))  # [N, L]
    of_later = later.log_softmax(-1)[sequences[:, 0]].gather(2, sequences[:, 1:, None]).squeeze(2)
    logp = torch.cat([first.log_softmax(0)[sequences[:, :1]], of_later], dim=1)
    probability = logp.sum(1).exp()
    maps = places(sequences, effects)

    exact = torch.autograd.grad(probability @ maps.mean((1, 2)), (first, later), retain_graph=True)

    one, other = torch.cartesian_prod(torch.arange(len(sequences)), torch.arange(len(sequences))).unbind(1)
    groups = torch.stack([one, other], dim=1)  # [N^2, 2]
    scored = lesson(sequences[groups], maps.mean((1, 2))[groups], maps[groups])
    (credit,) = LocalCredit(SCALES, "none").assign([scored])
    counts = [windows(side, CELLS).gt(0).sum(1) for side in SCALES]
    shares = torch.cat([torch.outer(n, n).flatten() for n in counts]).double() / CELLS**2
    tokens = logp[groups].flatten(0, 1)
    nothing = tokens.detach()
    terms = grpo_loss(tokens, nothing, nothing, credit.tokens.flatten(0, 1), shares, beta=0.0, on_policy=True)
    weights = (probability[one] * probability[other]).detach()
    loss = weights @ terms.total.unflatten(0, (-1, 2)).mean(1)
    found = torch.autograd.grad(-loss, (first, later))
    for ours, wanted in zip(found, exact, strict=True):
        assert wanted.abs().max() > 1e-3
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-12)


def test_a_constant_shift_of_all_maps_changes_nothing():
    maps = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    tokens, rewards = torch.zeros(2, 3, LENGTH), maps.mean((2, 3))
    (plain,) = LocalCredit(SCALES).assign([lesson(tokens, rewards, maps)])
    (moved,) = LocalCredit(SCALES).assign([lesson(tokens, rewards, maps + torch.randn(2, 1, 4, 4))])
    torch.testing.assert_close(moved.tokens, plain.tokens)
    torch.testing.assert_close(window_means(maps, (1,)).squeeze(-1), rewards)


@pytest.mark.parametrize("changes", [{"micro_batch": 1}, {"micro_batch": 3, "recompute": True}])
def test_portions_do_not_change_the_gradient(changes):
    gradients = []
    for some in ({}, changes):
        adapters, state, rows, _ = sampled()
        maps = torch.randn(*rows.seeds.shape, 4, 4, generator=torch.Generator().manual_seed(3))
        learner = GrpoLearner(adapters, LearnerConfig(lora_rank=4, grad_clip=1e9, credit="local", **some))
        learner.update(0, Lesson(state, rows, learner.reference(state, rows), maps.mean((2, 3)), maps).split(1))
        gradients.append([learner.optimizer.state[p]["exp_avg"].clone() for p in adapters.parameters()])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-3)
    assert any(g.any() for g in gradients[0])


def test_it_is_refused_where_it_cannot_work():
    adapters, state, rows, rewards = sampled()
    learner = GrpoLearner(adapters, LearnerConfig(lora_rank=4, credit="local"))
    with pytest.raises(ValueError, match="detail='map'"):
        learner.update(0, Lesson(state, rows, learner.reference(state, rows), rewards).split(1))
    with pytest.raises(UserError, match="--group 1"):
        LocalCredit((1,)).assign([lesson(torch.zeros(1, 1, 1), torch.zeros(1, 1), torch.zeros(1, 1, 2, 2))])
