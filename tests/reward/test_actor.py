"""The scorer as a Ray actor gives what it gives in process, and tells of settings that it cannot use."""

from __future__ import annotations

import pytest
import ray
import torch

from reward.actor import start_reward_actor
from reward.base import RewardConfig
from reward.scorer import build_scorer


@pytest.fixture(scope="module")
def cluster():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_scores_equal_those_in_process(cluster):
    generator = torch.Generator().manual_seed(0)
    generated = torch.randint(0, 256, (2, 3, 3, 32, 32), generator=generator, dtype=torch.uint8)
    target = torch.randint(0, 256, (2, 3, 32, 32), generator=generator, dtype=torch.uint8)
    actor = start_reward_actor(RewardConfig(), num_cpus=1)
    remote, local = ray.get(actor.score.remote(generated, target)), build_scorer(RewardConfig()).score(generated, target)
    torch.testing.assert_close(remote.rewards, local.rewards, atol=1e-5, rtol=0)
    assert remote.components.keys() == local.components.keys()


def test_unusable_settings_surface_with_their_cause(cluster):
    actor = start_reward_actor(RewardConfig(reward="dreamsim"), num_cpus=1)
    with pytest.raises(ray.exceptions.RayError, match="dreamsim_cache"):
        ray.get(actor.score.remote(torch.zeros(1), torch.zeros(1)))
