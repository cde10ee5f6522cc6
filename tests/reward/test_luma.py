"""Brightness is that of ITU-R BT.601."""

from __future__ import annotations

import torch

from reward.luma import grey, luma


def test_brightness_of_the_primary_colours() -> None:
    colours = torch.eye(3).view(3, 3, 1, 1).expand(3, 3, 2, 2)
    torch.testing.assert_close(luma(colours)[:, 0, 0, 0], torch.tensor([0.299, 0.587, 0.114]))
    torch.testing.assert_close(luma(torch.ones(1, 3, 2, 2)), torch.ones(1, 1, 2, 2))
    assert torch.equal(grey(colours), luma(colours).expand(3, 3, 2, 2))
