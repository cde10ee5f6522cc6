"""The gradient of the reward with respect to the images."""

from __future__ import annotations

import pytest
import torch

from reward.base import PerceptualDistance
from reward.config import RewardConfig
from reward.pixels import ColorDistance, EdgeDistance, PsnrDistance, SsimDistance
from reward.scorer import RewardScorer, build_scorer
from reward.weighted import Part, WeightedSum
from stylevar.contracts import References
from stylevar.errors import UserError


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, 3, 32, 32), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("kind", [SsimDistance, PsnrDistance, EdgeDistance, ColorDistance])
def test_it_tells_what_a_small_change_does(kind):
    """Finite differences in fp64 along a random direction, within what bf16 keeps of the gradient."""
    distance = kind().double()
    images, target = pictures(2, 2), pictures(2, seed=1)
    slope = RewardScorer(kind(), scale=3.0).score(images, References(target), "gradient").detail
    assert slope.dtype == torch.bfloat16
    images_01, target_01 = images.double() / 255, target.double() / 255
    along = torch.randn(images.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def rewards(step: float) -> torch.Tensor:
        return -3.0 * distance.distance(distance.embed_targets(target_01), images_01 + step * along)["total"].double()

    step = 1e-3
    change = (rewards(step) - rewards(-step)) / (2 * step)
    scale = slope.double().flatten(2).norm(dim=2)
    assert ((slope.double() * along).flatten(2).sum(2) - change).abs().max() <= 0.03 * scale.max() + 1e-4


def test_portions_and_the_rest_of_the_batch_do_not_matter():
    images, target = pictures(3, 2), pictures(3, seed=1)
    whole = build_scorer(RewardConfig()).score(images, References(target), "gradient")
    parts = build_scorer(RewardConfig(reward_batch=1)).score(images, References(target), "gradient")
    torch.testing.assert_close(parts.detail.float(), whole.detail.float(), atol=1e-4, rtol=0.05)
    plain = build_scorer(RewardConfig()).score(images, References(target))
    assert plain.detail is None
    torch.testing.assert_close(plain.rewards, whole.rewards)
    assert not whole.rewards.requires_grad
    assert not any(value.requires_grad for value in whole.components.values())


def test_a_sum_has_the_weighted_sum_of_the_gradients():
    images, target = pictures(1, 2), pictures(1, seed=1)
    both = WeightedSum({"ssim": Part(SsimDistance(), 2.0), "color": Part(ColorDistance(), 0.1)})
    found = RewardScorer(both, scale=1.0).score(images, References(target), "gradient").detail.float()
    parts = [
        RewardScorer(kind(), scale=weight).score(images, References(target), "gradient").detail.float()
        for kind, weight in ((SsimDistance, 2.0), (ColorDistance, 0.1))
    ]
    torch.testing.assert_close(found, sum(parts), atol=1e-4, rtol=0.02)


class Counted(PerceptualDistance):
    """How many pixels are brighter than the target's, which is flat almost everywhere."""

    name = "counted"

    def embed(self, images_01):
        return (images_01,)

    def compare(self, first, second):
        return {"total": (second[0] > first[0]).float().mean((1, 2, 3))}


def test_a_reward_without_a_gradient_is_refused_in_one_line():
    with pytest.raises(UserError, match="the reward counted has no gradient"):
        RewardScorer(Counted()).score(pictures(1, 2), References(pictures(1)), "gradient")
