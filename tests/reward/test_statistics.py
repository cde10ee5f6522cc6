"""What pictures look like: closed forms of each statistic."""

from __future__ import annotations

import pytest
import torch

from reward.config import RewardConfig
from reward.scorer import build_scorer
from reward.statistics import STATISTICS, color_entropy, group_diversity, image_statistics, of_images
from stylevar.contracts import References


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def flat(value: int, size: int = 16) -> torch.Tensor:
    return torch.full((1, 3, size, size), value, dtype=torch.uint8)


def test_a_flat_picture_has_nothing():
    for name, value in of_images(flat(90)).items():
        assert value.item() == pytest.approx(0, abs=1e-9), name


def test_sharpness_of_stripes():
    """Columns 0, 0, 1, 1, ...: the Laplacian is +1 or -1 everywhere, but 0 at the two borders, which repeat themselves."""
    stripes = flat(0)
    stripes[..., 2::4] = 255
    stripes[..., 3::4] = 255
    inner = 14 / 16
    assert of_images(stripes)["sharpness"].item() == pytest.approx(inner, rel=1e-5)


def test_edges_of_a_step_and_of_a_gentle_ramp():
    step = flat(0)
    step[..., 8:] = 255
    assert of_images(step)["edge_density"].item() == pytest.approx(2 / 16)  # both sides of the step
    ramp = (torch.arange(16) * 4).to(torch.uint8).expand(1, 3, 16, 16)  # 4 / 255 per pixel
    assert of_images(ramp)["edge_density"].item() == 0
    # Four times as steep; at the two borders, which repeat themselves, half of that.
    assert of_images((ramp.long() * 4).to(torch.uint8))["edge_density"].item() == 14 / 16


def test_entropy_of_known_palettes():
    """Four equally frequent colours have two bits; shades within one cell are one colour."""
    image = flat(0)
    image[:, 0, :8], image[:, 1, :, :8] = 255, 255
    assert color_entropy(image).item() == pytest.approx(2.0, abs=1e-5)
    shades = flat(64)
    shades[..., ::2] = 95
    assert color_entropy(shades).item() == pytest.approx(0, abs=1e-6)
    assert 8.5 < color_entropy(noise(1, 3, 128, 128)).item() < 9


def test_blur_lowers_sharpness_and_edges():
    image = noise(1, 3, 32, 32)
    blurred = torch.nn.functional.avg_pool2d(image.float(), 5, 1, 2).to(torch.uint8)
    sharp, soft = of_images(image), of_images(blurred)
    assert all(soft[name] < sharp[name] for name in STATISTICS)


def test_diversity_is_the_mean_pairwise_distance():
    group = torch.cat([flat(0), flat(255), flat(255)])
    assert group_diversity(group).tolist() == pytest.approx([1.0, 0.5, 0.5])
    assert group_diversity(noise(1, 3, 40, 40).expand(4, -1, -1, -1)).tolist() == [0.0] * 4


def test_groups_and_targets_are_kept_apart():
    generated, target = noise(2, 3, 3, 24, 24), noise(2, 3, 24, 24, seed=1)
    found = image_statistics(generated, target)
    assert set(found) == {*STATISTICS, *(f"target_{name}" for name in STATISTICS), "diversity"}
    assert all(value.shape == (2, 3) and value.dtype == torch.float32 for value in found.values())
    for b in range(2):
        own = of_images(target[b : b + 1])
        for name, value in of_images(generated[b]).items():
            torch.testing.assert_close(found[name][b], value)
            torch.testing.assert_close(found[f"target_{name}"][b], own[name].expand(3))
    assert "diversity" not in image_statistics(generated[:, :1], target)


def test_they_travel_with_every_score():
    scores = build_scorer(RewardConfig()).score(noise(2, 2, 3, 32, 32), References(noise(2, 3, 32, 32)))
    assert {"sharpness", "target_sharpness", "diversity"} <= set(scores.components)
    torch.testing.assert_close(scores.rewards, -5.0 * scores.components["total"])
