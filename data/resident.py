"""Keep all triplets of a run in a few tensors on the training device: a batch is one look-up, with no work per triplet."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.augment import is_mirrored
from data.config import AugmentConfig
from data.shard_writer import ROLES
from data.shards import TripletShards
from stylevar.contracts import ConditionBatch

Tokenize = Callable[[Tensor], Tensor]
"""Images uint8 [N, 3, H, W] -> VQ tokens int16 [N, L]."""
FILL = 64


class ResidentTriplets:
    """Decoded triplets with their VQ tokens and, with `config.flip`, also their mirror images.

    A batch contains the same images as `augment` would give for the single triplets.
    """

    def __init__(
        self,
        triplets: TripletShards,
        config: AugmentConfig,
        tokenize: Tokenize,
        device: torch.device,
        progress: Callable[[int], object] = lambda done: None,
    ) -> None:
        """`progress` is called with the number of newly prepared triplets. `config` must not vary the pictures."""
        if config.varies:
            raise ValueError("pictures that differ in each epoch cannot be kept in memory: use --no-augment")
        self.keys, self.config = triplets.keys, config
        views = 2 if config.flip else 1
        images, tokens = [], []
        for start in range(0, len(triplets), FILL):
            rows = [triplets.usable(i) for i in range(start, min(start + FILL, len(triplets)))]
            some = torch.stack([torch.stack([getattr(row, role) for role in ROLES]) for row in rows])  # [n, 3, 3, H, W]
            seen = [tokenize(view.flatten(0, 1)).unflatten(0, view.shape[:2]) for view in (some, some.flip(-1))[:views]]
            images.append(some.to(device))
            tokens.append(torch.stack(seen, dim=1).to(device))  # [n, views, 3, L]
            progress(len(rows))
        self._images, self._tokens = torch.cat(images), torch.cat(tokens)
        self._mirrored: dict[tuple[int, int], NDArray[np.bool_]] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def batch(self, rows: NDArray[np.int64], epochs: NDArray[np.int64], seed: int) -> ConditionBatch:
        """The triplets `rows` as augmented for their epochs, on the device, with tokens."""
        mirrored = np.array([self._flips(seed, int(e))[r] for r, e in zip(rows, epochs, strict=True)], dtype=np.bool_)
        device = self._images.device
        at, flip = torch.from_numpy(rows).to(device), torch.from_numpy(mirrored).to(device)
        images = self._images[at]
        images = torch.where(flip[:, None, None, None, None], images.flip(-1), images)
        content, style, target = images.unbind(1)
        keys = tuple(self.keys[row] for row in rows)
        return ConditionBatch(keys, content, style, target, tokens=self._tokens[at, flip.long()])

    def _flips(self, seed: int, epoch: int) -> NDArray[np.bool_]:
        """Which triplets are mirrored in an epoch. Caches the last two epochs, because batches span them."""
        if not self.config.flip:
            return np.zeros(len(self), dtype=np.bool_)
        known = self._mirrored.get((seed, epoch))
        if known is None:
            known = np.array([is_mirrored(seed, epoch, key) for key in self.keys], dtype=np.bool_)
            self._mirrored[seed, epoch] = known
            while len(self._mirrored) > 2:
                self._mirrored.pop(next(iter(self._mirrored)))
        return known
