"""The triplets of an SFT run: opening shards, mirroring, and filling the token cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from tqdm import tqdm

from data.shards import TripletShards, expand_shards
from learner.sft import TokenCache
from stylevar.contracts import ConditionBatch

ROLES = ("content", "style", "target")


def open_triplets(patterns: Sequence[str], image_size: int, memory_gb: float) -> tuple[TripletShards, bool]:
    """The triplets, and whether they fit into `memory_gb`: then all are decoded and checked at once, and kept."""
    paths = expand_shards(patterns)
    triplets = TripletShards(paths, image_size)
    fits = len(triplets) * len(ROLES) * 3 * image_size**2 <= memory_gb * 1e9
    if fits:
        triplets = TripletShards(paths, image_size, cache=True)
        triplets.validate()
    return triplets, fits


def in_order(triplets: TripletShards, size: int) -> Iterator[ConditionBatch]:
    """All triplets in batches of `size`; the last one may be smaller."""
    for start in range(0, len(triplets), size):
        yield pick(triplets, range(start, min(start + size, len(triplets))))


def pick(triplets: TripletShards, indices: Sequence[int]) -> ConditionBatch:
    """The triplets at `indices`, stacked; a bad one gives way to the next."""
    return ConditionBatch.stack([triplets.usable(i) for i in indices])


def spread(triplets: TripletShards, count: int) -> ConditionBatch:
    """Up to `count` triplets at equal distances, the same each time."""
    count = min(count, len(triplets))
    return pick(triplets, [i * len(triplets) // count for i in range(count)])


def mirrored(batch: ConditionBatch) -> ConditionBatch:
    """All images flipped from left to right."""
    return replace(batch, **{role: getattr(batch, role).flip(-1) for role in ROLES})


def mirror_some(batch: ConditionBatch) -> ConditionBatch:
    """Each triplet as it is or mirrored, with equal chance, drawn from torch's global stream."""
    flip = (torch.rand(len(batch)) < 0.5).view(-1, 1, 1, 1)
    other = mirrored(batch)
    return replace(batch, **{role: getattr(other, role).where(flip, getattr(batch, role)) for role in ROLES})


def fill(tokens: TokenCache, triplets: TripletShards, flip: bool, label: str) -> None:
    """Tokenise all images of `triplets` (and their mirror images), in a fixed order."""
    size = 32
    bar = tqdm(total=len(triplets), desc=f"tokenising {label}", unit="triplet", leave=False)
    with bar:
        for batch in in_order(triplets, size):
            for view in (batch, mirrored(batch)) if flip else (batch,):
                tokens.add(torch.cat([view.content, view.target, view.style]))
            bar.update(len(batch))
