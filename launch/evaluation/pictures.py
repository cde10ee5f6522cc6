"""Draw the best, median and worst conditions of a method."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from data.triplets import load_rgb, to_u8
from launch.common.grids import draw_table
from launch.evaluation.conditions import ConditionSet
from launch.evaluation.runner import file_name
from stylevar.atomic import file_aside

EACH = 3


def ranked(values: list[float], higher_is_better: bool, each: int = EACH) -> dict[str, list[int]]:
    """Numbers of the best, the median and the worst conditions, best first. Each appears at most once; NaN ranks last."""
    sign = -1 if higher_is_better else 1
    order = sorted(range(len(values)), key=lambda i: (math.isnan(values[i]), sign * values[i]))
    each = min(each, max(1, len(order) // 3))
    middle = max(0, (len(order) - each) // 2)
    spans = {"best": order[:each], "median": order[middle : middle + each], "worst": order[len(order) - each :]}
    seen: set[int] = set()
    unique = {}
    for name, numbers in spans.items():
        unique[name] = [i for i in numbers if i not in seen]
        seen.update(unique[name])
    return unique


def draw_best_worst(
    folder: Path, method: str, rows: pa.Table, conditions: ConditionSet, column: str, higher_is_better: bool
) -> Path:
    """Write best_worst_METHOD.png, ranked by the first samples' values of `column`, and return its path."""
    first = rows.filter(pc.and_(pc.equal(rows["method"], method), pc.equal(rows["sample"], 0)))
    values = first[column].to_pylist()
    cells, captions = [], []
    for name, numbers in ranked(values, higher_is_better).items():
        for i in numbers:
            batch = conditions.batch([i])
            images = [image[0] for image in batch.references.pictures().values()]
            sample = load_rgb(folder / "images" / method / f"{file_name(batch.keys[0])}.png")
            cells.append([*images, to_u8(sample)])
            captions.append([batch.keys[0][:24], *[""] * (len(images) - 1), f"{name} {values[i]:.4g}"])
    titles = [*conditions.batch([0]).references.pictures(), method]
    path = folder / f"best_worst_{method}.png"
    grid = draw_table(cells, titles, captions, scale=1 if cells[0][0].shape[-1] >= 128 else 2)
    with file_aside(path) as aside:
        Image.fromarray(grid.permute(1, 2, 0).numpy()).save(aside, format="PNG")
    return path
