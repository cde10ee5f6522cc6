"""The built-in distance on the demo pictures: what it has to rank, and what it is made of."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from data.patterns import expand_shards
from data.shards import TripletShards
from data.triplets import decode_u8
from launch.common.defaults import DEMO_DATA
from reward.build import build_distance
from reward.config import RewardConfig
from reward.lite import PIXEL_WEIGHT, GreyDistance, LiteDistance, LiteFeatures
from reward.luma import grey
from reward.scorer import RewardScorer, build_scorer
from stylevar.contracts import References


@pytest.fixture(scope="module")
def targets():
    shards = TripletShards(expand_shards([DEMO_DATA / "heldout-*.tar"]))
    return torch.stack([shards[i].target for i in range(0, 96, 6)])


@pytest.fixture(scope="module")
def scorer() -> RewardScorer:
    return build_scorer(RewardConfig(reward="lite", reward_scale=5.0, reward_batch=7))


def compressed(image_u8, quality=30):
    buffer = io.BytesIO()
    Image.fromarray(image_u8.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
    return decode_u8(buffer.getvalue())


def test_identical_images_score_zero(scorer, targets):
    scores = scorer.score(targets.unsqueeze(1), References(targets))
    torch.testing.assert_close(scores.rewards, torch.zeros(len(targets), 1), atol=1e-5, rtol=0)


def test_a_worse_copy_is_nearer_than_another_picture(scorer, targets):
    copies = torch.stack([compressed(image) for image in targets])
    others = targets.roll(1, 0)
    rewards = scorer.score(torch.stack([copies, others], dim=1), References(targets)).rewards
    assert (rewards[:, 0] > rewards[:, 1]).all()


def test_reward_is_made_of_its_components(scorer, targets):
    scores = scorer.score(targets.roll(1, 0).unsqueeze(1), References(targets))
    parts = scores.components
    torch.testing.assert_close(parts["total"], parts["features"] + PIXEL_WEIGHT * parts["pixels16"])
    torch.testing.assert_close(scores.rewards, -5.0 * parts["total"])
    assert {"ssim", "psnr", "color"} <= set(parts)


def test_a_score_does_not_depend_on_its_batch(scorer, targets):
    groups = torch.stack([targets.roll(i, 0) for i in range(1, 5)], dim=1)
    together = scorer.score(groups, References(targets)).rewards
    alone = torch.cat([scorer.score(groups[i : i + 1], References(targets[i : i + 1])).rewards for i in range(len(targets))])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_one_target_is_never_broadcast(scorer, targets):
    with pytest.raises(ValueError, match="number or size"):
        scorer.score(targets.unsqueeze(1), References(targets[:1]))


def test_features_are_frozen_and_differentiable(targets):
    features = LiteFeatures().train()
    images = (targets[:2].float() / 255).requires_grad_()
    maps = features(images)
    assert [m.shape[1] for m in maps] == list(LiteFeatures.channels)
    sum(m.mean() for m in maps).backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in features.parameters())
    assert not features.training


def test_it_is_never_called_dreamsim():
    assert isinstance(build_distance(RewardConfig(reward="lite")), LiteDistance)
    assert LiteDistance.name == "lite"


def test_the_grey_distance_ignores_colours_alone(targets):
    distance, images = GreyDistance(), targets[:4].float() / 255
    others = images.roll(1, 0)
    embedding = distance.embed_targets(images)
    far, near = (distance.distance(embedding, other.unsqueeze(1))["total"] for other in (others, grey(images)))
    assert near.abs().max() < 1e-5
    assert (far > 0.1).all()
    features = LiteDistance()
    wanted = features.distance(features.embed_targets(grey(images)), grey(others).unsqueeze(1))["features"]
    torch.testing.assert_close(far, wanted)
