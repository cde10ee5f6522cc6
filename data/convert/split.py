"""Assign triplets to splits by the content of their images, never by names or order."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Lt

from stylevar.bounds import check_bounds

SPLITS = ("train", "val_pair", "val_style", "val_content")
Share = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True)
class SplitConfig:
    """The held-out shares. Contents and styles are identified by a hash of their bytes."""

    holdout_content: Share = 0.05
    """Share of contents that are never trained on (`val_content`)."""
    holdout_style: Share = 0.05
    """Share of styles that are never trained on (`val_style`)."""
    holdout_pair: Share = 0.01
    """Share of the pairs of trained contents and trained styles that are held out (`val_pair`)."""
    split_seed: int = 0
    """Seed of the choice of held-out contents, styles and pairs."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def split(self, content_id: str, style_id: str) -> str:
        """The split of a pair. A held-out content takes precedence over a held-out style."""
        if self._draw("content", content_id) < self.holdout_content:
            return "val_content"
        if self._draw("style", style_id) < self.holdout_style:
            return "val_style"
        return "val_pair" if self._draw("pair", f"{content_id}/{style_id}") < self.holdout_pair else "train"

    def _draw(self, kind: str, what: str) -> float:
        digest = hashlib.sha256(f"{self.split_seed}/{kind}/{what}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64
