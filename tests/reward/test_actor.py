"""The scorer as a Ray actor gives what it gives in process, and tells of settings that it cannot use."""

from __future__ import annotations

import pytest
import ray
import torch

from launch.common.ray_cluster import init_patiently
from reward.actor import RewardWorker
from reward.config import RewardConfig
from reward.scorer import build_scorer
from stylevar.contracts import ConditionBatch, References
from stylevar.errors import UserError


@pytest.fixture(scope="module")
def actor():
    init_patiently(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray.remote(RewardWorker).options(num_cpus=1).remote("reward-0")
    ray.shutdown()


def test_scores_equal_those_in_process(actor):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 3, 32, 32), generator=generator, dtype=torch.uint8)
    target = torch.randint(0, 256, (2, 3, 32, 32), generator=generator, dtype=torch.uint8)
    ray.get(actor.setup.remote(RewardConfig(), "cpu", 1))
    batch = ConditionBatch(("a", "b"), target, target, target)
    scores, info = ray.get(actor.score.options(num_returns=2).remote(images, batch, 3))
    local = build_scorer(RewardConfig()).score(images, References(target))
    torch.testing.assert_close(scores.rewards, local.rewards, atol=1e-5, rtol=0)
    assert scores.components.keys() == local.components.keys()
    assert info.seconds > 0


def test_unusable_settings_surface_with_their_cause(actor):
    with pytest.raises(UserError, match="dreamsim_cache"):
        ray.get(actor.setup.remote(RewardConfig(reward="dreamsim"), "cpu", 1))
