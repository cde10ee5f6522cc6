from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from launch.common.grids import GridRow, draw_grid, reward_captions


def flat(red: int, size: int = 16) -> Tensor:
    image = torch.zeros(3, size, size, dtype=torch.uint8)
    image[0] = red
    return image


def row(samples: int, captions: tuple[str, ...] = (), size: int = 16) -> GridRow:
    stack = torch.stack([flat(200 + g, size) for g in range(samples)]) if samples else torch.zeros(0, 3, size, size)
    return GridRow(flat(10, size), flat(20, size), flat(30, size), stack, captions)


def reds(grid: Tensor) -> set[int]:
    """Red values of the pixels that are neither paper nor ink."""
    pixels = grid.permute(1, 2, 0).reshape(-1, 3)
    return set(pixels[(pixels[:, 1] == 0) & (pixels[:, 2] == 0)][:, 0].tolist())


def test_shape_and_content():
    grid = draw_grid([row(2)], scale=2)
    assert grid.dtype == torch.uint8
    assert grid.is_contiguous()
    assert grid.shape[0] == 3
    assert grid.shape[2] > 5 * 32
    assert {10, 20, 30, 200, 201} <= reds(grid)


def test_order_from_left_to_right():
    grid = draw_grid([row(1)], scale=1)
    columns = [(grid[0] == red) & (grid[1] == 0) for red in (10, 20, 30, 200)]
    lefts = [int(mask.any(dim=0).nonzero()[0]) for mask in columns]
    assert lefts == sorted(lefts)
    assert all(int(mask.sum()) == 16 * 16 for mask in columns)


def test_conditions_without_a_target_have_no_column_for_it():
    without = replace(row(2), target=None)
    assert draw_grid([without]).shape[2] < draw_grid([row(2)]).shape[2]
    assert 30 not in reds(draw_grid([without]))
    with pytest.raises(ValueError, match="some rows of a grid have a target"):
        draw_grid([row(2), without])


def test_scale_enlarges():
    grid = draw_grid([row(1)], scale=3)
    assert int(((grid[0] == 10) & (grid[1] == 0)).sum()) == 48 * 48


def test_captions_are_drawn_under_their_sample():
    plain, captioned = draw_grid([row(2)]), draw_grid([row(2, ("", "-0.713"))])
    changed = (plain != captioned).any(dim=0)
    assert changed.any()
    left, below = int(changed.any(dim=0).nonzero()[0]), int(changed.any(dim=1).nonzero()[0])
    sample = (captioned[0] == 201) & (captioned[1] == 0)
    assert left >= int(sample.any(dim=0).nonzero()[0]) - 1
    assert below > int(sample.any(dim=1).nonzero()[-1])


def test_rows_of_different_lengths():
    grid = draw_grid([row(1), row(3, ("a", "b", "c"))])
    assert {200, 201, 202} <= reds(grid)


def test_reward_captions():
    assert reward_captions(torch.tensor([-0.71251, 1.0])) == ["-0.713", "1.000"]


def test_bad_input():
    with pytest.raises(ValueError, match="at least one row"):
        draw_grid([])
    with pytest.raises(ValueError, match="more captions"):
        draw_grid([row(1, ("a", "b"))])
    with pytest.raises(ValueError, match="uint8"):
        draw_grid([GridRow(flat(1).float(), flat(1), flat(1), flat(1)[None])])
