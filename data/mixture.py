"""Which samples form the batch of a step when several corpora are mixed: a pure function of (config, seed, step)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from data.order import EpochOrder
from stylevar.bounds import check_bounds
from stylevar.errors import UserError

Weight = Annotated[float, Ge(0)]


@dataclass(frozen=True)
class MixtureConfig:
    """How corpora are mixed. Without weights every sample comes once an epoch: the corpora by their natural sizes."""

    weights: tuple[tuple[str, Weight], ...] = ()
    """Share of each corpus in the batches, e.g. --weights omnistyle 0.7 imagepulse 0.3."""
    weights_end: tuple[tuple[str, Weight], ...] = ()
    """Shares at the end of the run, reached linearly from --weights: a curriculum."""

    def __post_init__(self) -> None:
        check_bounds(self)
        for flag, pairs in (("--weights", self.weights), ("--weights-end", self.weights_end)):
            if pairs and not any(weight for _, weight in pairs):
                raise UserError(f"{flag} {_shown(pairs)}: one must be positive")
            if len(dict(pairs)) < len(pairs):
                raise UserError(f"{flag} {_shown(pairs)}: names a corpus twice")
        if self.weights_end and set(dict(self.weights_end)) != set(dict(self.weights)):
            end, start = _named(dict(self.weights_end)), _named(dict(self.weights))
            raise UserError(f"--weights-end names {end}, --weights {start}: name the same")


class Pick(NamedTuple):
    """One sample, and how often its corpus was gone through before."""

    sample: int
    epoch: int


class MixtureOrder:
    """The batches of a run of `steps` steps.

    Each corpus runs through its own epochs, no sample lost or repeated within one. With weights, the number of samples
    that a corpus has given never differs from its share by more than one, or its share's change within a step.
    """

    def __init__(
        self, corpora: Mapping[str, NDArray[np.int64]], config: MixtureConfig, seed: int, steps: int, batch: int
    ) -> None:
        """`corpora` are the sample numbers of each; UserError if `config` does not name just these."""
        weights, weights_end = dict(config.weights), dict(config.weights_end)
        if weights and set(weights) != set(corpora):
            raise UserError(f"--weights names {_named(weights)}, the shards hold {_named(corpora)}: name just these")
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
        if self._taken is not None:  # no process of several shall get one corpus only
            shuffled = np.random.Generator(np.random.PCG64(_hash(self.seed, f"slots {step}"))).permutation(len(picks))
            picks = [picks[i] for i in shuffled]
        return picks

    def share(self, step: int, rank: int, world: int) -> list[Pick]:
        """The part of `picks` that process `rank` of `world` takes: together they take all, none twice."""
        if self.batch % world:
            raise UserError(f"--batch {self.batch}: must be a multiple of --workers {world}")
        part = self.batch // world
        return self.picks(step)[rank * part : (rank + 1) * part]


def _quotas(start: NDArray[np.float64], end: NDArray[np.float64], steps: int, batch: int) -> NDArray[np.int64]:
    """How many samples each corpus has given before each step, int64 [steps + 1, K]."""
    along = np.linspace(0, 1, steps)[:, None] if steps > 1 else np.zeros((1, 1))
    wanted = np.cumsum(((1 - along) * start + along * end) * batch, axis=0)
    taken = np.zeros((steps + 1, len(start)), dtype=np.int64)
    have = [0] * len(start)
    for step, row in enumerate(wanted.tolist(), 1):
        # What is due, rounded down; what is then missing goes to those that lost most by it.
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


def _shown(pairs: tuple[tuple[str, float], ...]) -> str:
    return " ".join(f"{name} {weight:g}" for name, weight in pairs)


def _named(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names)) or "nothing"
