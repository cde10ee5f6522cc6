"""The triplets of an SFT run: opening shards, loading the batches of every step, and filling the token cache."""

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

from data.augment import AugmentConfig, augment
from data.convert.split import SPLITS
from data.index import TripletIndex, expand_shards, index_triplets
from data.mixture import MixtureOrder
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
    """Training triplets and the validation splits; `in_memory` if all of them are decoded and kept."""

    train: TripletShards
    validation: dict[str, TripletShards]
    in_memory: bool


def open_data(config: SftConfig, model: StyleVAR) -> SftData:
    """Find the triplets of a run. UserError as `TripletShards`, and if there is nothing to train on."""
    size = model.arch.image_size
    index = index_triplets(expand_shards(config.shards))
    parts = {"train": index.of_split("train"), **_validation(index, config)}
    if not len(parts["train"]):
        only = ", ".join(index.splits)
        raise UserError(f"{config.shards[0]} holds no triplet of the split train, only {only}: add the train shards")
    bytes_decoded = sum(len(part) for part in parts.values()) * len(ROLES) * 3 * size**2
    in_memory = bytes_decoded <= config.memory_gb * 1e9
    # Tokens of pictures that change anew each time are of no use, and an in-memory run makes its own.
    vae = None if in_memory or config.augment.varies else model.vae.fingerprint()
    # Those that become resident are decoded once, then.
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
            triplets = [
                augment(self.train.usable(p.sample), self.config, self.order.seed, p.epoch) for p in picks[start:end]
            ]
        except UserError as error:
            return error
        return ConditionBatch.stack(triplets)


class ResidentBatches:
    """`MicroBatches` of triplets that are all in memory, where the model is."""

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
    """Micro-batches of a whole run, `per_step` for each of its steps, that any process can make at any time."""

    per_step: int

    def __getitem__(self, number: int) -> BatchT | UserError: ...


def load_steps(
    batches: Numbered[BatchT], start: int, steps: int, workers: int, lost: str = "start again"
) -> Generator[list[BatchT], None, None]:
    """The micro-batches of each step from `start` on, read ahead by `workers` processes (0: in this one, when asked).

    Raises the UserErrors of `batches`, and one if a process is killed; `lost` says how to go on after that. However it
    ends, the processes end with it.
    """
    numbers = range(start * batches.per_step, steps * batches.per_step)
    items = _read_ahead(batches, numbers, workers, lost) if workers else (batches[number] for number in numbers)
    # Closed at once: the traceback of an error could keep the processes alive, and the program would wait for them.
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
        cast(Dataset, batches),  # all that a loader asks of one is __getitem__
        None,
        sampler=numbers,
        num_workers=workers,
        # As bytes through a pipe. Tensors would go through /dev/shm, which is small in containers: when it is full, a
        # loading process can neither send anything nor say so, and both sides wait for ever.
        collate_fn=pickle.dumps,
        # They ignore the signals with which a loader ends its processes, so they watch for its end.
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
    """How many processes read."""
    if config.loader_workers is not None:
        return config.loader_workers
    return 0 if data.in_memory else max(1, min(8, available_cpus() - 1))


def in_order(
    triplets: TripletShards, size: int, samples: int | None = None, rank: int = 0, world: int = 1
) -> Iterator[ConditionBatch]:
    """All triplets, or `samples` of them at equal distances, in batches of `size`; the last one may be smaller.

    Each of `world` processes gets other ones.
    """
    rows = strided(len(triplets), samples or len(triplets))[rank::world]
    for start in range(0, len(rows), size):
        yield pick(triplets, rows[start : start + size])


def pick(triplets: TripletShards, indices: Sequence[int]) -> ConditionBatch:
    """The triplets at `indices`, stacked; a bad one gives way to the next."""
    return ConditionBatch.stack([triplets.usable(i) for i in indices])


def strided(length: int, count: int) -> list[int]:
    """Up to `count` of `length` numbers, at equal distances from 0 on; the last is among them only if all are.

    GRPO's `data.conditions.spread` takes both ends. The two cannot become one: a resumed run must score the same held-out
    triplets as before.
    """
    count = min(count, length)
    return [i * length // count for i in range(count)]


def make_resident(
    tokens: TokenCache, triplets: TripletShards, config: AugmentConfig, device: torch.device, cache: Path
) -> ResidentTriplets:
    """Decode and tokenise all of `triplets`; tokens come from the file `cache` where it has them, and go there."""
    tokens.load(cache)
    known = len(tokens)
    with tqdm(total=len(triplets), desc="tokenising training triplets", unit="triplet", leave=False) as bar:
        resident = ResidentTriplets(triplets, config, tokens.rows, device, bar.update)
    if len(tokens) > known:
        try:
            with file_aside(cache) as aside:
                tokens.save(aside)
        except OSError as error:
            logger.warning("tokens are not kept for the next run: %s cannot be written (%s)", cache, error.strerror)
    return resident


def token_cache_file(triplets: TripletShards, vae: VQVAE) -> Path:
    """Where tokens of a run's images are kept: beside its first shard, under the VQ-VAE's fingerprint."""
    return triplets.index.paths[0].parent / f".tokens-{vae.fingerprint()}.safetensors"


def corpora(train: TripletShards) -> dict[str, np.ndarray]:
    """{name: its sample numbers} of what is trained on."""
    rows_of = {name: train.index.of_dataset(name) for name in train.index.datasets}
    return {name: rows for name, rows in rows_of.items() if len(rows)}
