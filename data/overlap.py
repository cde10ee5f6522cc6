"""Find triplets that two sets share, by content: held-out scores mean nothing if the model trains on the set."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from data.index import TripletIndex
from data.shard_writer import PARTS, ROLES
from data.shards import ShardFiles

logger = logging.getLogger(__name__)

_ROLES = [PARTS.index(role) for role in ROLES]


def shared_triplets(train: TripletIndex, heldout: TripletIndex) -> int:
    """How many triplets of `heldout` also occur in `train`, with the same three files byte for byte.

    Reads only triplets whose file sizes match, so this is fast for disjoint sets.
    """
    sizes = np.concatenate([train.places[:, _ROLES, 1], heldout.places[:, _ROLES, 1]])
    _, group = np.unique(sizes, axis=0, return_inverse=True)
    of_train, of_heldout = np.split(group.reshape(-1), [len(train)])
    trained = set(_digests(train, np.flatnonzero(np.isin(of_train, of_heldout))))
    return sum(digest in trained for digest in _digests(heldout, np.flatnonzero(np.isin(of_heldout, of_train))))


def warn_of_overlap(train: TripletIndex, heldout: Mapping[str, TripletIndex]) -> None:
    """Log one warning if held-out sets, {name: set}, contain training triplets, with their number in each."""
    counts = {name: shared_triplets(train, index) for name, index in heldout.items()}
    shared = [f"{count} of the {len(heldout[name])} triplets of {name}" for name, count in counts.items() if count]
    if shared:
        logger.warning(
            "%s are also trained on, so their scores do not measure new pictures; keep their shards out of --shards",
            " and ".join(shared),
        )


def _digests(index: TripletIndex, rows: NDArray[np.int64]) -> Iterator[bytes]:
    """A hash of each triplet's three files."""
    files = ShardFiles(index.paths)
    for row in rows:
        digest = hashlib.sha256()
        for offset, size in index.places[row, _ROLES].tolist():
            content = files.read(int(index.shard[row]), offset, size)
            digest.update(len(content).to_bytes(8, "little") + content)
        yield digest.digest()
    files.close()
