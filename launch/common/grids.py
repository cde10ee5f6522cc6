"""Image grids: conditions beside their samples, with the rewards written underneath."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_GAP = 4
_CAPTION = 16
_INK = (20, 20, 20)
_PAPER = (255, 255, 255)


@dataclass(frozen=True)
class GridRow:
    """A condition's images, uint8 [3, H, W], and its samples, uint8 [G, 3, H, W], with one caption for each sample.

    `target` is None for a condition that has none.
    """

    content: Tensor
    style: Tensor
    target: Tensor | None
    samples: Tensor
    captions: Sequence[str] = ()


def reward_captions(rewards: Tensor) -> list[str]:
    """Rewards float [G] as captions, e.g. "-0.713"."""
    return [f"{reward:.3f}" for reward in rewards.tolist()]


def draw_grid(rows: Sequence[GridRow], scale: int = 2) -> Tensor:
    """Draw content | style | target | samples, one condition per row, as uint8 [3, H, W], enlarged `scale` times.

    Rows may differ in their number of samples and in image size; cells have the size of the largest image. Without targets
    there is no column for them. Raises ValueError without rows, if only some rows have a target, or if a row has more
    captions than samples.
    """
    if not rows:
        raise ValueError("a grid needs at least one row")
    if any(len(row.captions) > len(row.samples) for row in rows):
        raise ValueError("a grid row has more captions than samples")
    if len({row.target is None for row in rows}) > 1:
        raise ValueError("some rows of a grid have a target and others have none")
    inputs = [[row.content, row.style, *(() if row.target is None else (row.target,))] for row in rows]
    cells = [[*shown, *row.samples] for shown, row in zip(inputs, rows, strict=True)]
    captions = [[*[""] * len(shown), *row.captions] for shown, row in zip(inputs, rows, strict=True)]
    samples = max(len(row.samples) for row in rows)
    titles = [*condition_titles(inputs[0]), *(f"sample {g}" for g in range(samples))]
    return draw_table(cells, titles, captions, scale)


def condition_titles(images: Sequence[Tensor]) -> list[str]:
    """What stands over the images of a condition: content, style, and target if it has one."""
    return ["content", "style", "target"][: len(images)]


def draw_table(
    cells: Sequence[Sequence[Tensor]],
    titles: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
    scale: int = 2,
) -> Tensor:
    """Draw images uint8 [3, H, W] in rows, `titles` above the columns, `captions` below the images; uint8 [3, H', W']."""
    height = scale * max(image.shape[1] for row in cells for image in row)
    width = scale * max(image.shape[2] for row in cells for image in row)
    column, line = width + _GAP, height + _GAP + (_CAPTION if captions is not None else 0)
    canvas = Image.new("RGB", (_GAP + column * len(titles), _CAPTION + _GAP + line * len(cells)), _PAPER)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default()
    for c, title in enumerate(titles):
        draw.text((_GAP + c * column, 2), title, fill=_INK, font=font)
    for r, row in enumerate(cells):
        top = _CAPTION + _GAP + r * line
        for c, image in enumerate(row):
            canvas.paste(_enlarged(image, scale), (_GAP + c * column, top))
        for c, caption in enumerate(captions[r] if captions is not None else ()):
            draw.text((_GAP + c * column, top + height + 2), caption, fill=_INK, font=font)
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1).contiguous()


def _enlarged(image_u8: Tensor, scale: int) -> Image.Image:
    if image_u8.dtype != torch.uint8 or image_u8.ndim != 3 or image_u8.shape[0] != 3:
        raise ValueError(f"a grid cell must be uint8 [3, H, W], not {image_u8.dtype} {tuple(image_u8.shape)}")
    image = Image.fromarray(image_u8.permute(1, 2, 0).contiguous().cpu().numpy())
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS)
