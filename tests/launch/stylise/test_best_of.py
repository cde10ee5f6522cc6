"""Results are rewarded for what they keep of the content and take from the style."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from data.patterns import expand_shards
from data.shards import TripletShards
from launch.common.defaults import DEMO_DATA
from launch.stylise.best_of import best
from launch.stylise.config import AppConfig, InferConfig, usual_reward
from reward.config import RewardConfig
from reward.luma import grey
from reward.scorer import RewardScorer, build_scorer
from stylevar.contracts import References, Scores
from stylevar.errors import UserError


@pytest.fixture(scope="module")
def triplets() -> list[Tensor]:
    """Contents, styles and targets of the demo, uint8 [B, 3, S, S] each."""
    shards = TripletShards(expand_shards([str(DEMO_DATA / "heldout-*.tar")]))
    conditions = [shards.usable(number) for number in range(0, len(shards), 24)]
    return [torch.stack([getattr(c, role) for c in conditions]) for role in ("content", "style", "target")]


@pytest.fixture(scope="module")
def scorer() -> RewardScorer:
    return build_scorer(usual_reward())


def score(scorer: RewardScorer, images: list[Tensor], content: Tensor, style: Tensor) -> Scores:
    return scorer.score(torch.stack(images, dim=1), References(content=content, style=style))


def test_copies_meet_one_side_only(scorer, triplets) -> None:
    content, style, target = triplets
    parts = score(scorer, [content, style, target], content, style).components
    assert parts["distance_lite_grey@content"][:, 0].abs().max() < 1e-4
    assert parts["distance_lite@style"][:, 1].abs().max() < 1e-4
    assert parts["distance_color@style"][:, 1].abs().max() < 1e-2
    assert (parts["distance_lite@style"][:, 0] > 0.1).all()
    assert (parts["distance_lite_grey@content"][:, 1] > 0.1).all()


def test_a_true_stylisation_beats_a_worse_one(scorer, triplets) -> None:
    content, style, target = triplets
    noise = torch.randint(0, 256, target.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mixed = (target.float() * 0.5 + noise.float() * 0.5).to(torch.uint8)
    rewards = score(scorer, [noise, mixed, target], content, style).rewards
    assert (rewards.diff(dim=1) > 0).all()


def test_new_colours_cost_no_content(scorer, triplets) -> None:
    content, style, _ = triplets
    blue = (grey(content.float()) * torch.tensor([0.5, 0.5, 1]).view(3, 1, 1)).to(torch.uint8)
    distances = score(scorer, [blue, style], content, style).components["distance_lite_grey@content"]
    assert (distances[:, 0] < 0.6 * distances[:, 1]).all()


def test_the_best_come_first_and_ties_keep_their_order() -> None:
    images = torch.arange(6, dtype=torch.uint8).view(2, 3, 1, 1, 1).expand(2, 3, 3, 2, 2)
    chosen, rewards = best(images, torch.tensor([[1.0, 3, 2], [5, 5, 5]]), 2)
    assert chosen[:, :, 0, 0, 0].tolist() == [[1, 2], [3, 4]]
    assert rewards.tolist() == [[3, 2], [5, 5]]


@pytest.mark.parametrize("kind", [InferConfig, AppConfig])
@pytest.mark.parametrize("reward", ["lite", "color@style=1,ssim=2"])
def test_a_reward_that_needs_a_target_is_refused(kind, reward) -> None:
    with pytest.raises(UserError, match=r"(lite|ssim) compares with a target.*write (lite|ssim)@content"):
        kind(reward=RewardConfig(reward=reward))
