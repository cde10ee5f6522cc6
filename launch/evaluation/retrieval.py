"""Retrieval test: a sample passes if its own target is the nearest of 16 candidates.

Half of the other candidates show other contents in the same style, half show the same content in other styles, as far as
the set has such targets. Neither the palette nor the outline alone identifies the right target.

Images are compared by features that were not used to train the model or the reward: histograms of oriented gradients
(Dalal and Triggs 2005) for the layout, and a coarse grid of mean colours.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reward.metrics import rgb_to_lab
from stylevar.contracts import Condition

RETRIEVAL = "retrieval/target"
"""The column's name in files."""
CANDIDATES = 16
CELLS, ORIENTATIONS = 8, 9
COLOUR_WEIGHT = 0.5
"""Weight of the colours in the similarity; the gradients have the remaining weight."""


def descriptors(images_01: Tensor) -> Tensor:
    """Features fp32 [N, D] of images fp32 [N, 3, H, W] in [0, 1]. Their dot products are similarities of at most 1."""
    lab = rgb_to_lab(images_01)
    gradients = F.normalize(oriented_gradients(lab[:, :1] / 100), dim=1)
    colours = F.adaptive_avg_pool2d(lab, 4).flatten(1)
    colours = F.normalize(colours - colours.new_tensor([50.0, 0.0, 0.0]).repeat_interleave(16), dim=1)
    return torch.cat([math.sqrt(1 - COLOUR_WEIGHT) * gradients, math.sqrt(COLOUR_WEIGHT) * colours], dim=1)


def oriented_gradients(luma_01: Tensor) -> Tensor:
    """Histograms [N, 9 * 8 * 8] of gradient orientations in 8 x 8 cells of [N, 1, H, W], each cell of length 1."""
    down = F.pad(luma_01, (0, 0, 1, 1), mode="replicate").diff(dim=2)
    right = F.pad(luma_01, (1, 1, 0, 0), mode="replicate").diff(dim=3)
    down, right = down[:, :, 1:] + down[:, :, :-1], right[..., 1:] + right[..., :-1]
    length = torch.hypot(down, right)
    place = torch.atan2(down, right).remainder(math.pi) / math.pi * ORIENTATIONS  # unsigned orientation
    bins = torch.arange(ORIENTATIONS, device=luma_01.device).view(1, -1, 1, 1)
    gap = (place - bins).abs()
    share = (1 - torch.minimum(gap, ORIENTATIONS - gap)).clamp(min=0)
    cells = F.adaptive_avg_pool2d(length * share, CELLS)
    return (cells / (cells.norm(dim=1, keepdim=True) + 1e-3)).flatten(1)


def candidates(metas: Sequence[Mapping[str, Any]]) -> Tensor:
    """Numbers int64 [n, k] of each condition's candidates, its own target first; k is 16, or n if n is smaller.

    `metas`: the conditions' metadata, with `content_name` and `style_id`.
    """
    count = len(metas)
    k = min(CANDIDATES, count)
    of_style, of_content = defaultdict[Any, list[int]](list), defaultdict[Any, list[int]](list)
    for i, meta in enumerate(metas):
        of_style[meta["style_id"]].append(i)
        of_content[meta["content_name"]].append(i)
    rows = []
    for i, meta in enumerate(metas):
        style, content = meta["style_id"], meta["content_name"]
        chosen = [i, *(j for j in _after(i, of_style[style]) if metas[j]["content_name"] != content)][: 1 + k // 2]
        chosen += [j for j in _after(i, of_content[content]) if metas[j]["style_id"] != style][: k // 2 - 1]
        rest = (j % count for j in range(i + 1, i + count))
        chosen += islice((j for j in rest if j not in chosen), k - len(chosen))
        rows.append(chosen)
    return torch.tensor(rows)


def _after(i: int, numbers: Sequence[int]) -> list[int]:
    """The ascending `numbers` without `i`, starting after `i` and wrapping around, so that candidates vary."""
    at = numbers.index(i)
    return [*numbers[at + 1 :], *numbers[:at]]


class Retrieval:
    """The descriptors of all targets of a set of conditions, for looking up samples."""

    def __init__(self, conditions: Iterable[Condition]) -> None:
        """`conditions`: all conditions of the set, in order. Raises ValueError if one has no target."""
        metas, seen = [], []
        for condition in conditions:
            if condition.target is None:
                raise ValueError(f"{condition.key} has no target to look for")
            metas.append(condition.meta)
            seen.append(descriptors(condition.target.unsqueeze(0).float() / 255))
        self._targets, self._candidates = torch.cat(seen), candidates(metas)

    def found(self, rows: Sequence[int], generated_01: Tensor) -> Tensor:
        """fp32 [B, G]: 1 if a sample, fp32 [B, G, 3, H, W], is nearest to its own target, that of condition `rows[b]`."""
        seen = descriptors(generated_01.flatten(0, 1)).unflatten(0, generated_01.shape[:2])
        theirs = self._targets.to(seen)[self._candidates[list(rows)].to(seen.device)]  # [B, k, D]
        return (torch.einsum("bgd,bkd->bgk", seen, theirs).argmax(-1) == 0).float()
