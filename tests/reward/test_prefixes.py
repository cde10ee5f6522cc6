"""Rewards of images that are not finished."""

from __future__ import annotations

import pytest
import torch

from reward.config import RewardConfig
from reward.scorer import build_scorer
from stylevar.contracts import References


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, 3, 32, 32), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("batch", [64, 4, 1])
def test_every_prefix_has_the_reward_of_its_image(batch):
    images, target = pictures(3, 2, 4), pictures(3, seed=1)
    scorer = build_scorer(RewardConfig("ssim", reward_batch=batch), detail="prefixes")
    found = scorer.score(images, References(target), "prefixes")
    final = scorer.score(images[:, :, -1], References(target))
    assert torch.equal(found.rewards, final.rewards)
    assert found.components.keys() == final.components.keys()
    assert found.detail.shape == (3, 2, 4)
    for scale in range(4):
        torch.testing.assert_close(found.detail[:, :, scale], scorer.score(images[:, :, scale], References(target)).rewards)


def test_a_model_of_one_scale_has_no_unfinished_image():
    images, target = pictures(1, 2, 1), pictures(1, seed=1)
    found = build_scorer(RewardConfig("ssim")).score(images, References(target), "prefixes")
    assert torch.equal(found.detail, found.rewards[..., None])


def test_finished_images_alone_are_not_taken_for_prefixes():
    with pytest.raises(ValueError, match="after every scale"):
        build_scorer(RewardConfig("ssim")).score(pictures(1, 2), References(pictures(1)), "prefixes")
