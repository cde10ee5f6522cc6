"""Results are judged by what they keep of the content and take from the style."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from data.index import expand_shards
from data.shards import TripletShards
from launch.common.defaults import DEMO_DATA
from launch.stylise.best_of import Judge, Judged, grey
from launch.stylise.config import ScoreConfig
from stylevar.errors import UserError


@pytest.fixture(scope="module")
def triplets() -> list[Tensor]:
    """Contents, styles and targets of the demo, uint8 [B, 3, S, S] each."""
    shards = TripletShards(expand_shards([str(DEMO_DATA / "heldout-*.tar")]))
    conditions = [shards.usable(number) for number in range(0, len(shards), 24)]
    return [torch.stack([getattr(c, role) for c in conditions]) for role in ("content", "style", "target")]


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(ScoreConfig())


def test_shapes_and_the_weighted_sum(judge, triplets) -> None:
    content, style, target = triplets
    judged = judge.score(torch.stack([target, content], dim=1), content, style)
    config, parts = judge.config, judged.parts
    assert set(parts) == {"content", "style", "palette"}
    total = config.content_weight * parts["content"] + config.style_weight * parts["style"]
    assert torch.allclose(judged.rewards, -(total + config.palette_weight * parts["palette"]))
    assert judged.rewards.shape == (len(content), 2)


def test_copies_meet_one_side_only(judge, triplets) -> None:
    content, style, target = triplets
    parts = judge.score(torch.stack([content, style, target], dim=1), content, style).parts
    assert parts["content"][:, 0].abs().max() < 1e-4
    assert parts["style"][:, 1].abs().max() < 1e-4
    assert parts["palette"][:, 1].abs().max() < 1e-2
    assert (parts["style"][:, 0] > 0.1).all()
    assert (parts["content"][:, 1] > 0.1).all()


def test_a_true_stylisation_beats_a_worse_one(judge, triplets) -> None:
    content, style, target = triplets
    noise = torch.randint(0, 256, target.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mixed = (target.float() * 0.5 + noise.float() * 0.5).to(torch.uint8)
    rewards = judge.score(torch.stack([noise, mixed, target], dim=1), content, style).rewards
    assert (rewards.diff(dim=1) > 0).all()


def test_a_score_does_not_depend_on_the_others(judge, triplets) -> None:
    content, style, target = triplets
    together = judge.score(torch.stack([target, content], dim=1), content, style).rewards
    alone = judge.score(target[1:2, None], content[1:2], style[1:2]).rewards
    assert torch.allclose(together[1:2, :1], alone, atol=1e-5)


def test_new_colours_cost_no_content(judge, triplets) -> None:
    content, style, _ = triplets
    blue = (grey(content.float()) * torch.tensor([0.5, 0.5, 1]).view(3, 1, 1)).to(torch.uint8)
    parts = judge.score(torch.stack([blue, style], dim=1), content, style).parts
    assert (parts["content"][:, 0] < 0.6 * parts["content"][:, 1]).all()


def test_the_best_come_first_and_ties_keep_their_order() -> None:
    judged = Judged(torch.tensor([[1.0, 3, 2], [5, 5, 5]]), {})
    images = torch.arange(6, dtype=torch.uint8).view(2, 3, 1, 1, 1).expand(2, 3, 3, 2, 2)
    best, rewards = judged.best(images, 2)
    assert best[:, :, 0, 0, 0].tolist() == [[1, 2], [3, 4]]
    assert rewards.tolist() == [[3, 2], [5, 5]]


@pytest.mark.parametrize("weights", [(-1, 1, 1), (0, 0, 0)])
def test_bad_weights(weights) -> None:
    with pytest.raises(UserError, match="--content-weight"):
        ScoreConfig(content_weight=weights[0], style_weight=weights[1], palette_weight=weights[2])


def test_dreamsim_needs_its_weights() -> None:
    with pytest.raises(UserError, match="dreamsim_cache"):
        Judge(ScoreConfig(reward="dreamsim"))
