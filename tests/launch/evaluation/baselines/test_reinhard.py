"""Colour transfer and content copy."""

from __future__ import annotations

import torch

from launch.evaluation.baselines.copy import ContentCopy
from launch.evaluation.baselines.reinhard import ColorTransfer, match_statistics
from reward.metrics import color_distance, rgb_to_lab
from stylevar.images import u8_to_01


def muted(seed: int, count: int = 2) -> torch.Tensor:
    """Pictures uint8 whose colours stay far from the edge of sRGB."""
    noise = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return (90 + 60 * noise + 8 * seed).to(torch.uint8)


def test_means_and_deviations_become_the_styles():
    lab = [rgb_to_lab(u8_to_01(muted(seed))) for seed in (0, 1)]
    for found, wanted in zip(torch.std_mean(match_statistics(*lab), (2, 3)), torch.std_mean(lab[1], (2, 3)), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-4)


def test_so_they_do_in_the_picture():
    content, style = muted(0), muted(3)
    result = ColorTransfer().samples(content, style, ("a", "b"), 1, 0)[:, 0]
    before, after = (color_distance(u8_to_01(images), u8_to_01(style)) for images in (content, result))
    assert (before > 5).all()
    assert (after < 0.3).all()  # rounding to whole grey levels


def test_nothing_changes_if_content_and_style_are_the_same():
    content = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ColorTransfer().samples(content, content, ("a", "b"), 1, 0)[:, 0], content)


def test_a_flat_content_takes_the_styles_mean():
    flat = torch.full((1, 3, 16, 16), 128, dtype=torch.uint8)
    result = ColorTransfer().samples(flat, muted(1, 1), ("a",), 1, 0)[0, 0]
    assert result.flatten(1).float().std(1).max() < 1
    means = [rgb_to_lab(u8_to_01(images)).mean((2, 3)) for images in (result[None], muted(1, 1))]
    torch.testing.assert_close(means[0], means[1], atol=0.6, rtol=0)  # one colour, rounded to whole grey levels


def test_copy_gives_the_content():
    content = muted(0)
    result = ContentCopy().samples(content, muted(1), ("a", "b"), 3, 0)
    assert torch.equal(result, content.unsqueeze(1).expand(2, 3, 3, 16, 16))
