"""The triplets of an SFT run: opening shards, loading the batches of every step, and filling the token cache."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.augment import AugmentConfig, augment
from data.convert.split import SPLITS
from data.index import TripletIndex, expand_shards, index_triplets
from data.mixture import MixtureOrder
from data.shard_writer import ROLES
from data.shards import TripletShards
from launch.sft_config import SftConfig
from learner.token_cache import TokenCache
from stylevar.contracts import ConditionBatch
from stylevar.errors import UserError
from stylevar.processes import starting_workers
from stylevar.transformer import StyleVAR

BatchT = TypeVar("BatchT", covariant=True)
PREFETCHED = 4
"""Micro-batches that each loading process keeps ready."""


@dataclass(frozen=True)
class SftData:
    """Training triplets and the validation splits; `in_memory` if all of them are decoded and kept."""

    train: TripletShards
    validation: dict[str, TripletShards]
    in_memory: bool


def open_data(config: SftConfig, model: StyleVAR) -> SftData:
    """Find the triplets of a run. UserError as `TripletShards`, and if there is nothing to train on."""
    size = model.arch.image_size
    index = index_triplets(expand_shards(config.shards))
    found = {"train": index.of_split("train"), **_validation(index, config)}
    if not len(found["train"]):
        only = ", ".join(index.splits)
        raise UserError(f"{config.shards[0]} holds no triplet of the split train, only {only}: add the train shards")
    bytes_decoded = sum(len(some) for some in found.values()) * len(ROLES) * 3 * size**2
    in_memory = bytes_decoded <= config.memory_gb * 1e9
    # Tokens of pictures that change anew each time are of no use, and an in-memory run makes its own.
    vae = None if in_memory or config.augment.varies else model.vae.fingerprint()
    sets = {name: TripletShards(some, size, cache=in_memory, vae=vae) for name, some in found.items()}
    for triplets in sets.values() if in_memory else ():
        triplets.validate()
    return SftData(sets.pop("train"), sets, in_memory)


def _validation(index: TripletIndex, config: SftConfig) -> dict[str, TripletIndex]:
    if config.val_shards:
        index = index_triplets(expand_shards(config.val_shards))
        if not any(split in SPLITS[1:] for split in index.splits):
            return {"val": index}
    return {split: index.of_split(split) for split in SPLITS[1:] if split in index.splits}


class MicroBatches(Dataset):
    """Item i is micro-batch number i of the whole run, of one process: any of them can be made at any time, anywhere."""

    def __init__(
        self, train: TripletShards, order: MixtureOrder, config: AugmentConfig, micro_batch: int, rank: int, world: int
    ) -> None:
        self.train, self.order, self.config = train, order, config
        self.rank, self.world = rank, world
        self.per_step = -(-len(order.share(0, rank, world)) // micro_batch)
        """Micro-batches in a step; none is more than one triplet larger than another."""

    def __getitem__(self, number: int) -> ConditionBatch | UserError:
        """UserErrors are handed over, since what a loading process raises arrives with its traceback in the text."""
        step, micro = divmod(number, self.per_step)
        picks = self.order.share(step, self.rank, self.world)
        start, end = (len(picks) * m // self.per_step for m in (micro, micro + 1))
        try:
            found = [augment(self.train.usable(p.sample), self.config, self.order.seed, p.epoch) for p in picks[start:end]]
        except UserError as error:
            return error
        return ConditionBatch.stack(found)


class Numbered(Protocol[BatchT]):
    """Micro-batches of a whole run, `per_step` for each of its steps, that any process can make at any time."""

    per_step: int

    def __getitem__(self, number: int) -> BatchT | UserError: ...


def load_steps(batches: Numbered[BatchT], start: int, steps: int, workers: int) -> Iterator[list[BatchT]]:
    """The micro-batches of each step from `start` on, read ahead by `workers` processes (0: in this one, when asked)."""
    ahead: dict[str, Any] = {}
    if workers:
        # Not forked from here, where threads run: that can hang. Imported once for all of them.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        ahead = {"prefetch_factor": PREFETCHED, "multiprocessing_context": context}
    numbers = range(start * batches.per_step, steps * batches.per_step)
    source = cast(Dataset, batches)  # all that a loader asks of one is __getitem__
    loader = DataLoader(source, None, sampler=numbers, num_workers=workers, collate_fn=_unchanged, **ahead)
    with starting_workers():
        items = iter(loader)
    for _ in range(start, steps):
        some = []
        for _ in range(batches.per_step):
            item = next(items)
            if isinstance(item, UserError):
                raise item
            some.append(item)
        yield some


def loader_workers(config: SftConfig, data: SftData) -> int:
    """How many processes read."""
    if config.loader_workers is not None:
        return config.loader_workers
    return 0 if data.in_memory else max(1, min(8, (os.cpu_count() or 1) - 1))


def _unchanged(item: Any) -> Any:
    return item


def in_order(
    triplets: TripletShards, size: int, samples: int | None = None, rank: int = 0, world: int = 1
) -> Iterator[ConditionBatch]:
    """All triplets, or `samples` of them at equal distances, in batches of `size`; the last one may be smaller.

    Each of `world` processes gets other ones.
    """
    rows = spread(len(triplets), samples or len(triplets))[rank::world]
    for start in range(0, len(rows), size):
        yield pick(triplets, rows[start : start + size])


def pick(triplets: TripletShards, indices: Sequence[int]) -> ConditionBatch:
    """The triplets at `indices`, stacked; a bad one gives way to the next."""
    return ConditionBatch.stack([triplets.usable(i) for i in indices])


def spread(length: int, count: int) -> list[int]:
    """Up to `count` of `length` numbers at equal distances, the same each time."""
    count = min(count, length)
    return [i * length // count for i in range(count)]


def fill(tokens: TokenCache, triplets: TripletShards, flip: bool, label: str) -> None:
    """Tokenise all images of `triplets` (and their mirror images), in a fixed order."""
    with tqdm(total=len(triplets), desc=f"tokenising {label}", unit="triplet", leave=False) as bar:
        for batch in in_order(triplets, 32):
            mirrored = replace(batch, **{role: getattr(batch, role).flip(-1) for role in ROLES})
            for view in (batch, mirrored) if flip else (batch,):
                tokens.add(torch.cat([view.content, view.target, view.style]))
            bar.update(len(batch))


def corpora(train: TripletShards) -> dict[str, np.ndarray]:
    """{name: its sample numbers} of what is trained on."""
    found = {name: train.index.of_dataset(name) for name in train.index.datasets}
    return {name: rows for name, rows in found.items() if len(rows)}
