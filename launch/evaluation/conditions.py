"""The conditions of an evaluation: triplets from shards, or pairs of pictures without targets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from data.conditions import spread
from data.index import expand_shards
from data.shards import TripletShards
from data.triplets import load_image_u8
from launch.evaluation.config import EvalConfig
from stylevar.contracts import Condition, ConditionBatch
from stylevar.errors import UserError

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

logger = logging.getLogger(__name__)


@dataclass
class PairedSet:
    """Triplets of shards, by number."""

    shards: tuple[str, ...]
    limit: int = 0
    triplets: TripletShards = field(init=False)

    def __post_init__(self) -> None:
        """Raises UserError for unusable shards."""
        paths = expand_shards(self.shards)
        size = TripletShards(paths).usable(0).content.shape[-1]
        self.triplets = TripletShards(paths, image_size=size)
        self._chosen = spread(len(self.triplets), self.limit or None)

    def __len__(self) -> int:
        return len(self._chosen)

    @property
    def keys(self) -> tuple[str, ...]:
        """Of all conditions, in their order."""
        every = self.triplets.keys
        return tuple(every[i] for i in self._chosen)

    def batch(self, rows: Sequence[int]) -> ConditionBatch:
        """Some of the conditions; a bad one gives way to the next good one in key order."""
        return ConditionBatch.stack([self.condition(i) for i in rows])

    def condition(self, row: int) -> Condition:
        """One of the conditions, likewise."""
        return self.triplets.usable(self._chosen[row])


@dataclass
class UnpairedSet:
    """Pairs of a content and a style file; the key is CONTENT__STYLE. The "target" of a batch is empty, [B, 0, H, W]."""

    pairs: tuple[tuple[str, Path, Path], ...]
    size: int

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def keys(self) -> tuple[str, ...]:
        """Of all conditions, in their order."""
        return tuple(pair[0] for pair in self.pairs)

    def batch(self, rows: Sequence[int]) -> ConditionBatch:
        """Some of the conditions, each picture's centre square."""
        chosen = [self.pairs[i] for i in rows]
        content, style = (
            torch.stack([load_image_u8(files[at], self.size) for files in ([p[1:] for p in chosen])]) for at in (0, 1)
        )
        nothing = content.new_empty(len(chosen), 0, *content.shape[-2:])
        return ConditionBatch(tuple(p[0] for p in chosen), content, style, nothing)


ConditionSet = PairedSet | UnpairedSet


def open_conditions(config: EvalConfig, size: int) -> ConditionSet:
    """The conditions that `config` names; `size` is the side of pictures without targets. Raises UserError."""
    if config.paired:
        return PairedSet(config.shards, config.limit)
    assert config.content is not None
    assert config.style is not None
    contents, styles = (_usable(find_pictures(source), size) for source in (config.content, config.style))
    if config.pairing == "zip":
        if len(contents) != len(styles):
            raise UserError(f"--pairing zip: {len(contents)} usable contents and {len(styles)} styles; give as many of both")
        pairs = list(zip(contents.items(), styles.items(), strict=True))
    else:
        pairs = list(product(contents.items(), styles.items()))
    named = [(f"{c}__{s}", content, style) for (c, content), (s, style) in pairs]
    return UnpairedSet(tuple(named[i] for i in spread(len(named), config.limit or None)), size)


def find_pictures(source: Path) -> list[Path]:
    """The pictures that a file, a folder, or a .txt list of files names. UserError if there is none."""
    if source.is_dir():
        files = sorted(f for f in source.iterdir() if f.suffix.lower() in PICTURES and not f.name.startswith("."))
    elif source.suffix.lower() == ".txt" and source.is_file():
        lines = (line.strip() for line in source.read_text().splitlines())
        files = [source.parent / line for line in lines if line]
    else:
        files = [source] if source.is_file() else []
    if not files:
        raise UserError(f"no picture in {source}: give a picture, a folder of {' '.join(PICTURES)}, or a .txt list of files")
    return files


def _usable(files: Sequence[Path], size: int) -> dict[str, Path]:
    """{name: file} of those that can be read; the others are logged. UserError if none can."""
    names = [file.stem for file in files]
    found: dict[str, Path] = {}
    for file in files:
        try:
            load_image_u8(file, size)
        except UserError as error:
            logger.warning("left out: %s", error)
            continue
        found[file.stem if names.count(file.stem) == 1 else str(file).replace("/", "_").replace(".", "_")] = file
    if not found:
        raise UserError(f"none of the {len(files)} pictures can be read, such as {files[0]}")
    return found


def reference_images(batch: ConditionBatch) -> dict[str, Tensor]:
    """What can be compared with, uint8 [B, 3, H, W] by name; "target" is there only if there are targets."""
    found = {"content": batch.content, "style": batch.style}
    return found | ({"target": batch.target} if batch.target.shape[1] == 3 else {})
