"""The conditions of an evaluation: triplets or pairs from shards, or pairs of pictures."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import ClassVar

import torch

from data.conditions import spread
from data.patterns import expand_shards
from data.shards import TripletShards
from data.triplets import load_image_u8
from launch.evaluation.config import EvalConfig
from launch.stylise.pictures import Failures, pictures_at
from stylevar.contracts import Condition, ConditionBatch
from stylevar.errors import UserError
from stylevar.text import clipped, printable

logger = logging.getLogger(__name__)


@dataclass
class ShardSet:
    """Triplets or pairs of shards, accessed by number."""

    shards: tuple[str, ...]
    limit: int = 0
    triplets: TripletShards = field(init=False)

    def __post_init__(self) -> None:
        """Raises UserError for unusable shards."""
        paths = expand_shards(self.shards)
        size = TripletShards(paths, needs_targets=False).usable(0).content.shape[-1]
        self.triplets = TripletShards(paths, image_size=size, needs_targets=False)
        self._chosen = spread(len(self.triplets), self.limit or None)

    def __len__(self) -> int:
        return len(self._chosen)

    @property
    def has_targets(self) -> bool:
        """Whether these are triplets."""
        return self.triplets.has_targets

    @property
    def keys(self) -> tuple[str, ...]:
        """Of all conditions, in their order."""
        every = self.triplets.keys
        return tuple(every[i] for i in self._chosen)

    def batch(self, rows: Sequence[int]) -> ConditionBatch:
        """Some of the conditions. A bad one is replaced by the next good one in key order."""
        return ConditionBatch.stack([self.condition(i) for i in rows])

    def condition(self, row: int) -> Condition:
        """One of the conditions, with the same replacement."""
        return self.triplets.usable(self._chosen[row])


@dataclass
class PictureSet:
    """Pairs of a content and a style file, without targets; the key is CONTENT__STYLE."""

    pairs: tuple[tuple[str, Path, Path], ...]
    size: int
    has_targets: ClassVar[bool] = False

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
        return ConditionBatch(tuple(p[0] for p in chosen), content, style, None)


ConditionSet = ShardSet | PictureSet


def open_conditions(config: EvalConfig, size: int) -> ConditionSet:
    """The conditions that `config` names; `size` is the side of pictures of `--content`. Raises UserError."""
    if config.content is None:
        return ShardSet(config.shards, config.limit)
    assert config.style is not None
    files = [pictures_of(source) for source in (config.content, config.style)]
    contents, styles = (_named(some) for some in files)
    if config.pairing == "zip":
        if len(contents) != len(styles):
            raise UserError(f"--pairing zip: {len(contents)} contents and {len(styles)} styles; give as many of both")
        pairs = list(zip(contents, styles, strict=True))
    else:
        pairs = list(product(contents, styles))
    usable = [_usable(some, size) for some in files]
    named = [(f"{c}__{s}", one, other) for (c, one), (s, other) in pairs if one in usable[0] and other in usable[1]]
    named = list(dict.fromkeys(named))  # a list may contain a file twice
    if not named:
        raise UserError("--pairing zip: every pair has an unreadable picture; see the warnings above")
    return PictureSet(tuple(named[i] for i in spread(len(named), config.limit or None)), size)


def pictures_of(source: Path) -> list[Path]:
    """The pictures that --content or --style names. Unsupported ones are logged. UserError if there are none."""
    failures = Failures()
    files = pictures_at(source, failures)
    for reason in failures.reasons.values():
        logger.warning("left out: %s", reason)
    return files


def _named(files: Sequence[Path]) -> list[tuple[str, Path]]:
    """Every file with its name: its stem, or its whole path if several files share the stem."""
    stems = Counter(file.stem for file in files)
    full = (str(file).replace("/", "_").replace(".", "_") for file in files)
    return [(printable(file.stem if stems[file.stem] == 1 else name), file) for file, name in zip(files, full, strict=True)]


def _usable(files: Sequence[Path], size: int) -> set[Path]:
    """The readable files. The others are logged. UserError if none can be read."""
    usable = set()
    for file in dict.fromkeys(files):
        try:
            load_image_u8(file, size)
        except UserError as error:
            logger.warning("left out: %s", printable(error))
            continue
        usable.add(file)
    if not usable:
        raise UserError(f"none of the {len(files)} pictures can be read, such as {clipped(files[0])}")
    return usable
