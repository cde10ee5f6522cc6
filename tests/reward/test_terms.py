"""What --reward can say, and the sum that it builds."""

from __future__ import annotations

import pytest
import torch

from launch.configs.grpo import load_config
from reward.build import build_distance
from reward.config import RewardConfig
from reward.metrics import independent_metrics
from reward.scorer import build_scorer
from reward.terms import Term, parse_terms
from stylevar.contracts import References
from stylevar.errors import UserError


@pytest.fixture
def groups():
    """Generated images uint8 [2, 3, 3, 32, 32] and targets uint8 [2, 3, 32, 32]."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, 256, (2, 3, 32, 32), generator=generator, dtype=torch.uint8)


def test_a_bare_name_takes_the_scale():
    assert parse_terms("lite", 5.0) == (Term("lite", 5.0),)
    assert parse_terms("dreamsim=4, lpips", 2.0) == (Term("dreamsim", 4.0), Term("lpips", 2.0))
    assert parse_terms("my.module:Mine=0.5", 5.0) == (Term("my.module:Mine", 0.5),)
    assert parse_terms("style@style=3000, dreamsim @ content", 2.0) == (
        Term("style", 3000.0, "style"),
        Term("dreamsim", 2.0, "content"),
    )
    assert parse_terms("lite@target", 5.0) == parse_terms("lite", 5.0)
    assert RewardConfig("lite", reward_scale=3.0).scale == 3.0
    assert RewardConfig("lite=2", reward_scale=3.0).scale == 2.0
    assert RewardConfig("lite=2,ssim=1").scale == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pretty", "unknown reward 'pretty': choose one of lite, lite_grey, dreamsim"),
        ("", "unknown reward ''"),
        ("lite,", "unknown reward ''"),
        (":Class", "unknown reward ':Class'"),
        ("lite=0", "lite=0: the weight must be a positive number"),
        ("lite=-1", "positive number"),
        ("lite=nan", "positive number"),
        ("lite=much", "positive number"),
        ("lite=1,lite=2", "lite is given twice"),
    ],
)
def test_what_cannot_be_a_reward(text, message):
    with pytest.raises(UserError, match=message):
        RewardConfig(text)


def test_a_sum_is_the_sum_of_its_parts(groups):
    images, targets = groups
    sum_ = build_scorer(RewardConfig("lite=2.0,ssim=0.5,color")).score(images, References(targets))
    lite, ssim, color = (
        build_scorer(RewardConfig(name, reward_scale=1.0)).score(images, References(targets)) for name in NAMES
    )
    expected = 2 * lite.rewards + 0.5 * ssim.rewards + 5 * color.rewards
    torch.testing.assert_close(sum_.rewards, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sum_.components["total"], -sum_.rewards)
    torch.testing.assert_close(sum_.components["distance_lite"], lite.components["total"])
    torch.testing.assert_close(sum_.components["lite_features"], lite.components["features"])
    torch.testing.assert_close(sum_.components["distance_ssim"], 1 - sum_.components["ssim"])
    torch.testing.assert_close(sum_.components["distance_color"], sum_.components["color"])


NAMES = ("lite", "ssim", "color")


def test_pixel_distances_are_the_metrics_turned_round(groups):
    images, targets = groups
    metrics = independent_metrics(images[:, 0].float() / 255, targets.float() / 255)
    totals = {
        n: build_scorer(RewardConfig(n)).score(images[:, :1], References(targets)).components["total"][:, 0]
        for n in ("ssim", "psnr")
    }
    torch.testing.assert_close(totals["ssim"], 1 - metrics["ssim"])
    torch.testing.assert_close(totals["psnr"], 1 - metrics["psnr"] / 100)


@pytest.mark.parametrize("name", ["lite", "ssim", "psnr", "color", "lite=1,ssim=2"])
def test_equal_images_have_no_distance(name, groups):
    targets = groups[1]
    distance = build_distance(RewardConfig(name))
    assert not distance.training
    scores = build_scorer(RewardConfig(name)).score(targets[:, None], References(targets))
    torch.testing.assert_close(scores.rewards, torch.zeros(2, 1), atol=1e-4, rtol=0)


def test_a_score_does_not_depend_on_how_it_is_batched(groups):
    images, targets = groups
    whole = build_scorer(RewardConfig("lite=1,ssim=1")).score(images, References(targets))
    small = build_scorer(RewardConfig("lite=1,ssim=1", reward_batch=2)).score(images, References(targets))
    torch.testing.assert_close(whole.rewards, small.rewards, atol=1e-5, rtol=0)


def test_an_old_config_still_loads(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("reward:\n  reward: lite\n  dreamsim_type: dino_vitb16\n  dreamsim_cache: null\n  reward_scale: 5.0\n")
    assert load_config(path).reward == RewardConfig("lite")
