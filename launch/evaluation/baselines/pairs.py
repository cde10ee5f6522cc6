"""AdaIN's training data: any content of the shards with any style of the shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.augment import augment
from data.config import AugmentConfig
from data.convert.split import SPLITS
from data.index import index_triplets
from data.patterns import expand_shards
from data.shard_writer import ROLES
from data.shards import TripletShards
from stylevar.errors import UserError


@dataclass(frozen=True)
class PairBatch:
    """Contents and styles, uint8 [B, 3, H, W] each, drawn independently of each other."""

    content: Tensor
    style: Tensor


class PairBatches(Dataset):
    """Item i is the batch of step i, a function of (seed, i): contents and styles are drawn independently of each other."""

    per_step = 1

    def __init__(self, triplets: TripletShards, config: AugmentConfig, batch: int, seed: int) -> None:
        self.triplets, self.config, self.batch, self.seed = triplets, config, batch, seed

    def __getitem__(self, step: int) -> PairBatch | UserError:
        """UserErrors are returned: an error raised in a loading process would arrive with its traceback in the text."""
        rows = np.random.default_rng([self.seed, step]).integers(len(self.triplets), size=(2, self.batch))
        try:
            contents, styles = (
                [augment(self.triplets.usable(int(row)), self.config, self.seed, step) for row in some] for some in rows
            )
        except UserError as error:
            return error
        return PairBatch(torch.stack([c.content for c in contents]), torch.stack([s.style for s in styles]))


def open_train(patterns: Sequence[str], memory_gb: float) -> tuple[TripletShards, bool]:
    """The split "train" of some shards, and whether its triplets fit and are kept in memory.

    All triplets must have the size of the first. Raises the UserErrors of `TripletShards`, and one if the split is empty.
    """
    index = index_triplets(expand_shards(patterns))
    train = index.of_split("train")
    if len(index) and not len(train):
        only = ", ".join(index.splits)
        raise UserError(f"{patterns[0]} holds no triplet of the split train, only {only}: add the train shards")
    size = TripletShards(train).usable(0).content.shape[-1]
    in_memory = len(train) * len(ROLES) * 3 * size**2 <= memory_gb * 1e9
    return TripletShards(train, size, cache=in_memory), in_memory


def open_heldout(patterns: Sequence[str], size: int) -> TripletShards:
    """The validation splits of some shards, or all triplets without such splits. UserError as in `TripletShards`."""
    index = index_triplets(expand_shards(patterns))
    rows = np.isin(index.split, [n for n, name in enumerate(index.splits) if name in SPLITS[1:]])
    return TripletShards(index.select(rows) if rows.any() else index, size)
