"""Read pairs of pictures as squares for the model, ahead of time while it works on the previous pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from data.triplets import load_photo
from launch.stylise.pictures import Failures, PairFiles
from stylevar.errors import UserError
from stylevar.fit import Fit
from stylevar.pictures import Size, square, to_u8
from stylevar.pipeline import style_fit

T = TypeVar("T")
KEPT = 512
"""Pictures to keep in memory for later pairs: 100 MB at 256 pixels."""


@dataclass(frozen=True)
class Square:
    """A picture as the model sees it, uint8 [3, S, S], and its original size."""

    image_u8: Tensor
    size: Size


@dataclass(frozen=True)
class LoadedPair:
    """Two pictures and the name of their result."""

    name: str
    content: Square
    style: Square


@dataclass(frozen=True)
class Batch:
    """Pairs to stylise at once, and the number of unreadable pairs skipped on the way (`lost`)."""

    pairs: list[LoadedPair]
    lost: int

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Contents and styles, uint8 [B, 3, S, S] each."""
        contents, styles = ([getattr(pair, role).image_u8 for pair in self.pairs] for role in ("content", "style"))
        return torch.stack(contents), torch.stack(styles)


class PictureReader:
    """Reads files as squares. Keeps the last few hundred in memory, and records each unreadable file once."""

    def __init__(self, side: int, fit: Fit, failures: Failures) -> None:
        """`side`: the side S of the squares. `fit`: how contents are made square."""
        self.side, self.fit, self.failures = side, fit, failures
        self._kept = lru_cache(maxsize=KEPT)(self._read)

    def batches(self, pairs: Sequence[PairFiles], size: int) -> Iterator[Batch]:
        """The pairs with two readable pictures, `size` at a time."""
        loaded: list[LoadedPair] = []
        lost = 0
        for pair in pairs:
            content, style = self._kept(pair.content, self.fit), self._kept(pair.style, style_fit(self.fit))
            if content is None or style is None:
                lost += 1
            else:
                loaded.append(LoadedPair(pair.name, content, style))
            if len(loaded) == size:
                yield Batch(loaded, lost)
                loaded, lost = [], 0
        if loaded or lost:
            yield Batch(loaded, lost)

    def _read(self, path: Path, fit: Fit) -> Square | None:
        try:
            # Decode at twice the side, so that the better filter does the last halving.
            photo = load_photo(path, short_side=2 * self.side)
            return Square(to_u8(square(photo.image, self.side, fit)), photo.size)
        except UserError as error:
            self.failures.add(str(path), str(error))
            return None


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; a thread makes each one while the caller works on the previous one."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, items, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, items, None)
            yield item
