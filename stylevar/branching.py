"""Groups that branch: trajectories share a prefix, the tokens of their first scales, and go on from there on their own.

Trajectories share a prefix because they draw its tokens with the same random numbers. Like the numbers themselves, the
branching depends only on (seed, step, condition key, g), so a resumed run draws the groups of the uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stylevar.errors import UserError
from stylevar.sampling import TrajectoryStreams, UniformStream, trajectory_seeds

CONTINUATIONS = 2
"""Trajectories that share a prefix in a step that compares prefixes."""
PREFIX_STEPS = 3
"""Successive steps that compare prefixes; in the step after them, the whole group shares one prefix."""
_OWN_BITS = 32
"""Low bits of a seed, which belong to the trajectory alone; the bits above them belong to its prefix."""


@dataclass(frozen=True)
class Branching:
    """Groups whose trajectories share their first `tokens` tokens with neighbours: in pairs in three steps of four, and all
    of them in the fourth."""

    tokens: int

    def seeds(self, seed: int, step: int, keys: tuple[str, ...], group: int) -> Tensor:
        """Seeds int64 [B, G] to use instead of `trajectory_seeds`: trajectories with one prefix have the same high bits."""
        own = trajectory_seeds(seed, step, keys, group)
        size = group if step % (PREFIX_STEPS + 1) == PREFIX_STEPS else CONTINUATIONS
        return (_prefixes(_firsts(own, size)) << _OWN_BITS) | (own & ((1 << _OWN_BITS) - 1))

    def streams(self, seeds: Tensor, length: int, device: torch.device) -> UniformStream:
        """One stream per trajectory of `length` tokens. Its numbers depend only on its own seed."""
        prefix, own = (TrajectoryStreams(some, length, device).uniform for some in (_prefixes(seeds), seeds))
        return UniformStream(torch.cat([prefix[..., : self.tokens], own[..., self.tokens :]], dim=-1))


def sharing(seeds: Tensor) -> int:
    """How many neighbours share a prefix in groups with seeds [B, G] of `Branching`: `CONTINUATIONS`, or all G.

    Raises ValueError for groups that do not branch.
    """
    prefixes, group = _prefixes(seeds), seeds.shape[1]
    for size in (group, CONTINUATIONS):
        if group % size == 0 and torch.equal(prefixes, _firsts(prefixes, size)):
            return size
    raise ValueError("the trajectories of these groups share no prefixes: sample them with branch_after")


def prefix_tokens(patch_nums: Sequence[int], scales: int = 0) -> int:
    """How many tokens the first `scales` scales have; 0 takes the scales up to a quarter of the last one's side.

    Raises UserError if no scale is left after them.
    """
    count = len(patch_nums)
    if count < 2:
        raise UserError("--credit vmr: the model has only one scale, and two are needed; choose another --credit")
    scales = scales or max(1, sum(4 * side <= patch_nums[-1] for side in patch_nums))
    if scales >= count:
        raise UserError(
            f"--credit-middle {scales}: the model has {count} scales, and at least one must follow; give at most {count - 1}"
        )
    return sum(side * side for side in patch_nums[:scales])


def _prefixes(seeds: Tensor) -> Tensor:
    """The seeds of the prefixes, equal for trajectories that share one; same shape as `seeds`."""
    return seeds >> _OWN_BITS


def _firsts(values: Tensor, size: int) -> Tensor:
    """`values` [B, G] with each run of `size` neighbours replaced by the first of them."""
    return values[:, torch.arange(values.shape[1]) // size * size]
