"""The conditions of a GRPO run: those of each training step, and the held-out sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from data.order import EpochOrder
from data.overlap import warn_of_overlap
from data.patterns import expand_shards
from data.shards import TripletShards
from stylevar.contracts import ConditionBatch
from stylevar.errors import UserError

TRAIN = "train"


class ConditionSets:
    """Training and held-out triplets by set name, read on demand."""

    def __init__(
        self,
        patterns: Mapping[str, Sequence[str]],
        image_size: int,
        vae: str | None,
        conditions: int,
        seed: int,
        target_for: str | None = None,
    ) -> None:
        """Args:
            patterns: {name: its shards, as for `expand_shards`}; "train" is the training set, ordered by `seed`.
            vae: fingerprint of the VQ-VAE, whose tokens beside the shards are used if there are any; None for no tokens.
            conditions: B, conditions per step.
            target_for: the term of the reward that compares with targets; None if no term does.

        Raises UserError if a set is unusable or lacks targets, or if there are fewer than B training triplets.
        """
        self.sets = {
            name: TripletShards(expand_shards(pattern), image_size=image_size, vae=vae, needs_targets=False)
            for name, pattern in patterns.items()
        }
        for name, triplets in self.sets.items():
            if target_for is not None and not triplets.has_targets:
                raise UserError(
                    f"the reward {target_for} compares with targets, but {' '.join(patterns[name])} contains pairs without "
                    f"one: write {target_for}@content or {target_for}@style in --reward, or give triplets"
                )
        self.conditions = conditions
        if len(self.sets[TRAIN]) < conditions:
            shards, there = " ".join(patterns[TRAIN]), len(self.sets[TRAIN])
            raise UserError(f"--conditions {conditions}: {shards} has only {there} triplets")
        for triplets in self.sets.values():
            # Fails here, not after minutes of work, for shards of another size or without pictures.
            for i in spread(len(triplets), 8):
                triplets.usable(i)
        heldout = {name: triplets.index for name, triplets in self.sets.items() if name != TRAIN}
        warn_of_overlap(self.sets[TRAIN].index, heldout)
        self.order = EpochOrder(len(self.sets[TRAIN]), seed)

    def sizes(self) -> dict[str, int]:
        """The number of triplets of each set."""
        return {name: len(triplets) for name, triplets in self.sets.items()}

    def of_step(self, step: int, rows: slice | None = None) -> ConditionBatch:
        """The conditions of a step, or some of its B conditions."""
        chosen = self.order.position(step, self.conditions)
        return self.pick(TRAIN, chosen if rows is None else chosen[rows])

    def pick(self, name: str, indices: Sequence[int]) -> ConditionBatch:
        """The triplets of set `name` at `indices`, stacked. The next good triplet in key order replaces a bad one."""
        return ConditionBatch.stack([self.sets[name].usable(i) for i in indices])


def spread(total: int, count: int | None) -> list[int]:
    """`count` indices below `total`, evenly spaced from the first to the last; all of them for None."""
    if count is None:
        return list(range(total))
    return sorted({int(i) for i in np.linspace(0, total - 1, min(count, total)).round()})
