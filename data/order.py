"""The batches of a run: a pure function of (seed, step), so resuming needs only the step number."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


class EpochOrder:
    """Sample `i` of the endless stream is `permutation(epoch = i // n)[i % n]`: each epoch visits every sample once.

    Batches continue across the end of an epoch, so no sample is lost. Only a batch that spans two epochs, or is larger
    than n, can contain a sample twice.
    """

    def __init__(self, n: int, seed: int) -> None:
        if n < 1:
            raise ValueError(f"an order needs at least one sample, got n = {n}")
        self.n = n
        self.seed = seed
        # A batch needs one epoch, or two at a boundary. Dropped permutations are recomputed.
        self.permutation = lru_cache(maxsize=2)(self._permutation)

    def __reduce__(self) -> tuple[type[EpochOrder], tuple[int, int]]:
        return EpochOrder, (self.n, self.seed)

    def position(self, step: int, batch: int) -> list[int]:
        """The `batch` sample indices of global step `step`, counted from 0, in a run with a constant batch size."""
        if step < 0 or batch < 1:
            raise ValueError(f"step must be at least 0 and batch at least 1, got {step} and {batch}")
        return [self.at(i) for i in range(step * batch, (step + 1) * batch)]

    def at(self, i: int) -> int:
        """Sample `i` of the stream."""
        return int(self.permutation(i // self.n)[i % self.n])

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        """The order of one epoch: int64 [n]."""
        # A hash, not arithmetic on the seed, so that neighbouring seeds and epochs are unrelated.
        digest = hashlib.sha256(f"{self.seed}:{epoch}".encode()).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big"))).permutation(self.n)
