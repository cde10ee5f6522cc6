"""The metrics beside the reward, against their definitions."""

from __future__ import annotations

import pytest
import torch

from reward.metrics import color_distance, edge_agreement, independent_metrics, lab_to_rgb, rgb_to_lab


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_identical_images_are_perfect():
    image = noise(2, 3, 32, 32)
    metrics = independent_metrics(image, image)
    torch.testing.assert_close(metrics["ssim"], torch.ones(2))
    assert metrics["psnr"].tolist() == [100.0, 100.0]
    assert metrics["color"].tolist() == [0.0, 0.0]


def test_psnr_of_a_known_error():
    image = torch.full((1, 3, 16, 16), 0.5)
    assert independent_metrics(image, image + 0.1)["psnr"].item() == pytest.approx(20.0, abs=1e-3)


def test_rows_are_compared_each_with_its_own():
    generated, target = noise(3, 3, 16, 16), noise(3, 3, 16, 16, seed=1)
    whole = independent_metrics(generated, target)
    for name, value in whole.items():
        alone = torch.cat([independent_metrics(generated[i : i + 1], target[i : i + 1])[name] for i in range(3)])
        torch.testing.assert_close(value, alone)


def test_one_target_is_never_broadcast():
    with pytest.raises(ValueError, match="must have one 4-D shape"):
        independent_metrics(noise(3, 3, 16, 16), noise(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((1, 1, 1), (100.0, 0.0, 0.0)),
        ((0, 0, 0), (0.0, 0.0, 0.0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
        ((0.5, 0.5, 0.5), (53.39, 0.0, 0.0)),
    ],
)
def test_lab_of_known_colours(rgb, lab):
    image = torch.tensor(rgb, dtype=torch.float32).view(1, 3, 1, 1)
    torch.testing.assert_close(rgb_to_lab(image).flatten(), torch.tensor(lab), atol=0.05, rtol=0)


def test_colour_distance_follows_the_palette_not_the_place():
    image = noise(1, 3, 16, 16)
    shuffled = image.flatten(2)[..., torch.randperm(256)].view_as(image)
    assert color_distance(image, shuffled).item() == pytest.approx(0.0, abs=1e-2)
    # Half black and half white against mid-lightness grey: the same mean, another spread.
    halves = torch.zeros(1, 3, 16, 16)
    halves[..., :8] = 1
    grey = torch.full((1, 3, 16, 16), 0.46633)  # L = 50
    assert color_distance(halves, grey).item() == pytest.approx(50.0, abs=0.1)
    plain = torch.zeros(1, 3, 16, 16)
    assert color_distance(plain, plain + 1).item() == pytest.approx(100.0, abs=0.05)


def test_lab_and_back():
    image = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0)) / 255
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(image)), image, atol=2e-5, rtol=0)


def test_colours_that_no_screen_has_are_clamped():
    lab = torch.tensor([50.0, 120.0, -120.0]).view(1, 3, 1, 1)
    rgb = lab_to_rgb(lab)
    assert rgb.min() == 0
    assert rgb.max() <= 1


def test_edges_agree_whatever_the_colours_and_wherever_they_are():
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(2, 1, 8, 8, generator=generator)
    shapes = torch.nn.functional.interpolate(rough, size=80, mode="nearest").expand(2, 3, 80, 80)
    torch.testing.assert_close(edge_agreement(shapes, shapes), torch.ones(2))
    torch.testing.assert_close(edge_agreement(1 - 0.5 * shapes, shapes), torch.ones(2))  # a negative, at half the contrast
    assert (edge_agreement(shapes.flip(0), shapes).abs() < 0.5).all()
    assert edge_agreement(torch.full_like(shapes, 0.5), shapes).tolist() == [0.0, 0.0]
