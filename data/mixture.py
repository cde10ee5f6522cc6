"""The batches of a run that mixes several corpora: a pure function of (config, seed, step)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.config import MixtureConfig, listed
from data.order import EpochOrder
from stylevar.errors import UserError


class Pick(NamedTuple):
    """One sample, and its corpus's epoch: the number of earlier passes over the corpus."""

    sample: int
    epoch: int


class MixtureOrder:
    """The batches of a run of `steps` steps.

    Each corpus has its own epochs, which contain every sample once. With weights, the number of samples taken from a
    corpus never differs from its share by more than one, or by the change of its share within a step.
    """

    def __init__(
        self, corpora: Mapping[str, NDArray[np.int64]], config: MixtureConfig, seed: int, steps: int, batch: int
    ) -> None:
        """`corpora` maps names to sample numbers; UserError if the weights do not name exactly these corpora."""
        weights, weights_end = dict(config.weights), dict(config.weights_end)
        if weights and set(weights) != set(corpora):
            raise UserError(f"--weights names {listed(weights)}, the shards hold {listed(corpora)}: name exactly these")
        self.seed, self.batch = seed, batch
        if not weights:
            self._members = [np.sort(np.concatenate(list(corpora.values())))]
            self._orders = [EpochOrder(len(self._members[0]), seed)]
            self._taken = None
            return
        names = sorted(corpora)
        self._members = [corpora[name] for name in names]
        self._orders = [EpochOrder(len(corpora[name]), _hash(seed, name)) for name in names]
        start = _shares([weights[name] for name in names])
        end = _shares([weights_end[name] for name in names]) if weights_end else start
        self._taken = _quotas(start, end, steps, batch)

    def picks(self, step: int) -> list[Pick]:
        """The samples of global step `step`, counted from 0."""
        if self._taken is None:
            spans = [(step * self.batch, (step + 1) * self.batch)]
        else:
            spans = list(zip(self._taken[step].tolist(), self._taken[step + 1].tolist(), strict=True))
        picks: list[Pick] = []
        for members, order, span in zip(self._members, self._orders, spans, strict=True):
            picks += [Pick(int(members[order.at(i)]), i // order.n) for i in range(*span)]
        if self._taken is not None:  # otherwise a process could get samples of only one corpus
            shuffled = np.random.Generator(np.random.PCG64(_hash(self.seed, f"slots {step}"))).permutation(len(picks))
            picks = [picks[i] for i in shuffled]
        return picks

    def share(self, step: int, rank: int, world: int) -> list[Pick]:
        """The part of `picks` for process `rank` of `world`: the processes share all picks, none twice."""
        if self.batch % world:
            raise UserError(f"--batch {self.batch}: must be a multiple of --workers {world}")
        part = self.batch // world
        return self.picks(step)[rank * part : (rank + 1) * part]


def _quotas(start: NDArray[np.float64], end: NDArray[np.float64], steps: int, batch: int) -> NDArray[np.int64]:
    """The number of samples taken from each corpus before each step, int64 [steps + 1, K]."""
    along = np.linspace(0, 1, steps)[:, None] if steps > 1 else np.zeros((1, 1))
    wanted = np.cumsum(((1 - along) * start + along * end) * batch, axis=0)
    taken = np.zeros((steps + 1, len(start)), dtype=np.int64)
    have = [0] * len(start)
    for step, row in enumerate(wanted.tolist(), 1):
        # Round down what is due to each corpus; those that lost most by rounding get the remaining samples.
        due = [max(0.0, want - had) for want, had in zip(row, have, strict=True)]
        give = [int(value) for value in due]
        by_loss = sorted(range(len(due)), key=lambda k: give[k] - due[k])
        missing = batch - sum(give)
        for k in by_loss[: max(0, missing)]:
            give[k] += 1
        for k in reversed(by_loss) if missing < 0 else ():
            back = min(give[k], sum(give) - batch)
            give[k] -= back
        have = [had + more for had, more in zip(have, give, strict=True)]
        taken[step] = have
    return taken


def _shares(weights: list[float]) -> NDArray[np.float64]:
    values = np.array(weights, dtype=np.float64)
    return values / values.sum()


def _hash(seed: int, what: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{what}".encode()).digest()[:8], "big")
