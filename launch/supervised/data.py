"""The triplets of an SFT run: open shards, load the batches of every step, and fill the token cache."""

from __future__ import annotations

import itertools
import logging
import pickle
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.augment import augment
from data.config import AugmentConfig
from data.convert.split import SPLITS
from data.index import TripletIndex, index_triplets
from data.mixture import MixtureOrder
from data.patterns import expand_shards
from data.processes import end_with_parent
from data.resident import ResidentTriplets
from data.shard_writer import ROLES
from data.shards import TripletShards
from launch.common.checkout import process_context
from launch.common.cpus import available_cpus
from launch.configs.sft import SftConfig
from learner.supervised.token_cache import TokenCache
from stylevar.atomic import file_aside
from stylevar.contracts import ConditionBatch
from stylevar.errors import UserError
from stylevar.processes import starting_workers
from stylevar.transformer import StyleVAR
from stylevar.vqvae import VQVAE

logger = logging.getLogger(__name__)

BatchT = TypeVar("BatchT", covariant=True)
PREFETCHED = 4
"""Micro-batches that each loading process keeps ready."""


@dataclass(frozen=True)
class SftData:
    """Training triplets and the validation splits. `in_memory`: all of them are decoded once and kept."""

    train: TripletShards
    validation: dict[str, TripletShards]
    in_memory: bool


def open_data(config: SftConfig, model: StyleVAR) -> SftData:
    """Open the triplets of a run. Raises the UserErrors of `TripletShards`, and one if there are no training triplets."""
    size = model.arch.image_size
    index = index_triplets(expand_shards(config.shards))
    parts = {"train": index.of_split("train"), **_validation(index, config)}
    if not len(parts["train"]):
        only = ", ".join(index.splits)
        raise UserError(f"{config.shards[0]} holds no triplet of the split train, only {only}: add the train shards")
    bytes_decoded = sum(len(part) for part in parts.values()) * len(ROLES) * 3 * size**2
    in_memory = bytes_decoded <= config.memory_gb * 1e9
    # Stored tokens are useless if augmentation changes the pictures, and an in-memory run computes its own.
    vae = None if in_memory or config.augment.varies else model.vae.fingerprint()
    # Training triplets that will be resident are decoded only once, later, and need no cache.
    kept = [name for name in parts if in_memory and (name != "train" or config.augment.varies)]
    sets = {name: TripletShards(part, size, cache=name in kept, vae=vae) for name, part in parts.items()}
    for name in kept:
        sets[name].validate()
    return SftData(sets.pop("train"), sets, in_memory)


def _validation(index: TripletIndex, config: SftConfig) -> dict[str, TripletIndex]:
    if config.val_shards:
        index = index_triplets(expand_shards(config.val_shards))
        if not any(split in SPLITS[1:] for split in index.splits):
            return {"val": index}
    return {split: index.of_split(split) for split in SPLITS[1:] if split in index.splits}


class MicroBatches(Dataset):
    """Item i is micro-batch number i of one process's whole run. Any item can be made at any time, in any process."""

    def __init__(
        self, train: TripletShards, order: MixtureOrder, config: AugmentConfig, micro_batch: int, rank: int, world: int
    ) -> None:
        self.train, self.order, self.config = train, order, config
        self.rank, self.world = rank, world
        self.per_step = -(-len(order.share(0, rank, world)) // micro_batch)
        """Micro-batches per step. Their sizes differ by at most one triplet."""

    def __getitem__(self, number: int) -> ConditionBatch | UserError:
        """UserErrors are returned: an error raised in a loading process would arrive with its traceback in the text."""
        step, micro = divmod(number, self.per_step)
        picks = self.order.share(step, self.rank, self.world)
        start, end = (len(picks) * m // self.per_step for m in (micro, micro + 1))
        try:
            triplets = [
                augment(self.train.usable(p.sample), self.config, self.order.seed, p.epoch) for p in picks[start:end]
            ]
        except UserError as error:
            return error
        return ConditionBatch.stack(triplets)


class ResidentBatches:
    """`MicroBatches` of triplets that are all in memory, on the model's device."""

    def __init__(self, resident: ResidentTriplets, order: MixtureOrder, micro_batch: int, rank: int, world: int) -> None:
        self.resident, self.order, self.rank, self.world = resident, order, rank, world
        self.per_step = -(-len(order.share(0, rank, world)) // micro_batch)

    def __getitem__(self, number: int) -> ConditionBatch:
        step, micro = divmod(number, self.per_step)
        picks = self.order.share(step, self.rank, self.world)
        start, end = (len(picks) * m // self.per_step for m in (micro, micro + 1))
        samples, epochs = np.array(picks[start:end], dtype=np.int64).T
        return self.resident.batch(samples, epochs, self.order.seed)


class Numbered(Protocol[BatchT]):
    """Micro-batches of a whole run, `per_step` for each step. Any process can make any of them at any time."""

    per_step: int

    def __getitem__(self, number: int) -> BatchT | UserError: ...


def load_steps(
    batches: Numbered[BatchT], start: int, steps: int, workers: int, lost: str = "start again"
) -> Generator[list[BatchT], None, None]:
    """The micro-batches of each step from `start` on, read ahead by `workers` processes (0: in this one, on demand).

    Raises the UserErrors of `batches`, and one if a process is killed; `lost` tells the user how to continue then. The
    processes always end with the generator.
    """
    numbers = range(start * batches.per_step, steps * batches.per_step)
    items = _read_ahead(batches, numbers, workers, lost) if workers else (batches[number] for number in numbers)
    # Close at once: the traceback of an error could keep the processes alive, and the program would wait for them.
    with closing(items):
        for _ in range(start, steps):
            some = []
            for item in itertools.islice(items, batches.per_step):
                if isinstance(item, UserError):
                    raise item
                some.append(item)
            yield some


def _read_ahead(
    batches: Numbered[BatchT], numbers: Sequence[int], workers: int, lost: str
) -> Generator[BatchT | UserError, None, None]:
    """The micro-batches `numbers`, in order, from `workers` processes."""
    loader = DataLoader(
        cast(Dataset, batches),  # a loader needs only __getitem__
        None,
        sampler=numbers,
        num_workers=workers,
        # Send bytes through a pipe. Tensors would go through /dev/shm, which is small in containers: when it is full, a
        # loading process can neither send anything nor report the error, and both sides wait forever.
        collate_fn=pickle.dumps,
        # The processes ignore the signals that a loader ends them with, so they watch for the end of their parent.
        worker_init_fn=end_with_parent,
        prefetch_factor=PREFETCHED,
        multiprocessing_context=process_context(__name__),
    )
    with starting_workers():
        encoded = iter(loader)
    try:
        yield from map(pickle.loads, encoded)
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error):
            raise
        raise UserError(
            f"a loading process was killed, probably because memory ran out: lower --loader-workers (now {workers}); {lost}"
        ) from error


def loader_workers(config: SftConfig, data: SftData) -> int:
    """Number of loading processes."""
    if config.loader_workers is not None:
        return config.loader_workers
    return 0 if data.in_memory else max(1, min(8, available_cpus() - 1))


def in_order(
    triplets: TripletShards, size: int, samples: int | None = None, rank: int = 0, world: int = 1
) -> Iterator[ConditionBatch]:
    """All triplets, or `samples` of them at equal distances, in batches of `size`; the last batch may be smaller.

    Each of the `world` processes gets different triplets.
    """
    rows = strided(len(triplets), samples or len(triplets))[rank::world]
    for start in range(0, len(rows), size):
        yield pick(triplets, rows[start : start + size])


def pick(triplets: TripletShards, indices: Sequence[int]) -> ConditionBatch:
    """The triplets at `indices`, stacked. A bad triplet is replaced by the next good one."""
    return ConditionBatch.stack([triplets.usable(i) for i in indices])


def strided(length: int, count: int) -> list[int]:
    """Up to `count` of the numbers below `length`, at equal distances from 0; the last one is included only if all are.

    GRPO's `data.conditions.spread` includes both ends. The two functions cannot be merged, because a resumed run must score
    the same held-out triplets as before.
    """
    count = min(count, length)
    return [i * length // count for i in range(count)]


def make_resident(
    tokens: TokenCache, triplets: TripletShards, config: AugmentConfig, device: torch.device, cache: Path
) -> ResidentTriplets:
    """Decode and tokenise all of `triplets`. Known tokens are read from the file `cache`, and new ones are saved to it."""
    tokens.load(cache)
    known = len(tokens)
    with tqdm(total=len(triplets), desc="tokenising training triplets", unit="triplet", leave=False) as bar:
        resident = ResidentTriplets(triplets, config, tokens.rows, device, bar.update)
    if len(tokens) > known:
        try:
            with file_aside(cache) as aside:
                tokens.save(aside)
        except OSError as error:
            logger.warning("tokens are not saved for the next run: %s cannot be written (%s)", cache, error.strerror)
    return resident


def token_cache_file(triplets: TripletShards, vae: VQVAE) -> Path:
    """The file for the tokens of a run's images: beside its first shard, named after the VQ-VAE's fingerprint."""
    return triplets.index.paths[0].parent / f".tokens-{vae.fingerprint()}.safetensors"


def corpora(train: TripletShards) -> dict[str, np.ndarray]:
    """{name: sample numbers} of every corpus in the training set."""
    rows_of = {name: train.index.of_dataset(name) for name in train.index.datasets}
    return {name: rows for name, rows in rows_of.items() if len(rows)}
