"""A small prepared set of noise."""

from __future__ import annotations

from pathlib import Path

import tiny

from data.convert import folder
from data.convert.config import ConvertConfig, FilterConfig, PictureConfig
from data.convert.run import convert
from data.convert.split import SplitConfig

SPLIT = SplitConfig(holdout_content=0.3, holdout_style=0.3, holdout_pair=0.3)


def prepare(path: Path, count: int = 24, dataset: str = "noise", size: int = 16, shard_bytes: int = 20_000) -> Path:
    """Make a set of `count` triplets of six contents and count / 6 styles, with all splits, in PATH/out."""
    for number in range(count):
        pictures = {"content": number % 6, "style": 50 + number // 6, "target": 100 + number}
        for role, seed in pictures.items():
            (path / "source" / role).mkdir(parents=True, exist_ok=True)
            (path / "source" / role / f"{number:03d}.png").write_bytes(tiny.png(seed, 20))
    config = ConvertConfig(dataset, PictureConfig(size=size), SPLIT, FilterConfig())
    convert(folder.blocks(path / "source", 5, dataset), path / "out", config, "noise", shard_bytes=shard_bytes)
    return path / "out"
