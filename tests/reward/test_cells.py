"""Maps of where a reward comes from: they have its mean, and what they show is in its place."""

from __future__ import annotations

import pytest
import torch

from reward.build import build_distance
from reward.cells import CELLS, to_grid
from reward.config import RewardConfig
from reward.scorer import RewardScorer, build_scorer
from stylevar.contracts import References
from stylevar.errors import UserError


def pictures(*shape: int, seed: int = 0, size: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, 3, size, size), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("size", [(16, 16), (8, 8), (5, 3), (1, 1), (40, 48), (17, 33)])
def test_every_grid_becomes_one_of_the_same_mean(size):
    values = torch.randn(3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = to_grid(values)
    assert found.shape == (3, CELLS, CELLS)
    torch.testing.assert_close(found.mean((1, 2)), values.mean((1, 2)))


def test_cells_average_what_lies_within_them():
    values = torch.tensor([[[0.0, 3.0, 6.0]]])
    torch.testing.assert_close(to_grid(values, side=2), torch.tensor([[[1.0, 5.0], [1.0, 5.0]]]))
    coarse = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    torch.testing.assert_close(to_grid(coarse, side=4), coarse.repeat_interleave(2, 1).repeat_interleave(2, 2))
    same = torch.randn(1, CELLS, CELLS)
    assert torch.equal(to_grid(same), same)


@pytest.mark.parametrize("reward", ["lite", "ssim", "lite=2,ssim=0.5"])
def test_the_mean_of_the_map_is_the_reward(reward):
    images, target = pictures(2, 3), pictures(2, seed=1)
    images[0, 0] = target[0]  # a distance of zero, whose root has no slope
    plain = build_scorer(RewardConfig(reward)).score(images, References(target))
    for batch in (64, 1):
        scores = build_scorer(RewardConfig(reward, reward_batch=batch)).score(images, References(target), "map")
        assert scores.detail.shape == (2, 3, CELLS, CELLS)
        assert not scores.detail.requires_grad
        torch.testing.assert_close(scores.rewards, plain.rewards)
        torch.testing.assert_close(scores.detail.mean((2, 3)), plain.rewards, atol=1e-5, rtol=1e-4)
    assert plain.detail is None


@pytest.mark.parametrize("reward", ["lite", "ssim"])
def test_a_spoiled_corner_is_seen_in_its_corner(reward):
    target = pictures(1, size=64)
    images = target[:, None].repeat(1, 2, 1, 1, 1)
    images[:, 1, :, :16, :16] = 255 - images[:, 1, :, :16, :16]
    scores = build_scorer(RewardConfig(reward)).score(images, References(target), "map")
    corner, opposite = scores.detail[0, 1, :4, :4].mean(), scores.detail[0, 1, 8:, 8:].mean()
    assert corner < 5 * opposite - 0.01
    assert scores.rewards[0, 1] < scores.rewards[0, 0]


def test_a_reward_without_places_is_refused_before_the_run():
    for reward in ("color", "lite=1,color=0.05"):
        with pytest.raises(UserError, match=r"--credit local: the reward color cannot be split .*lite") as caught:
            build_scorer(RewardConfig(reward), detail="map")
        assert "\n" not in str(caught.value)


def test_images_of_any_shape_have_a_map():
    images = pictures(1, 2)[..., :30]
    scores = RewardScorer(build_distance(RewardConfig())).score(images, References(images[:, 0].contiguous()), "map")
    torch.testing.assert_close(scores.detail.mean((2, 3)), scores.rewards, atol=1e-5, rtol=1e-4)
