"""Takes all the room of a Ray node's object store."""

from __future__ import annotations

import time

import numpy as np
import ray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

SIZES = (2**23, 2**20, 2**17)
"""Bytes of the objects that it holds: first large ones, then small ones for the gaps."""


@ray.remote(num_cpus=0)
class Hog:
    """Holds objects in use, which Ray can neither drop nor move to the disk."""

    def __init__(self) -> None:
        self._held: list[tuple[ray.ObjectRef, np.ndarray]] = []

    def fill(self) -> int:
        """Fill the store and the folder where it may grow. Returns the bytes held."""
        for size in SIZES:
            try:
                while True:
                    reference = ray.put(np.ones(size, np.uint8))
                    self._held.append((reference, ray.get(reference)))
            except (ObjectStoreFullError, OutOfDiskError):
                continue
        return sum(array.nbytes for _, array in self._held)

    def stay(self, seconds: float) -> None:
        """Keep all of it for `seconds`. After its last call, Ray ends an actor to which nobody refers."""
        time.sleep(seconds)


def fill_stores(seconds: float) -> list[int]:
    """Fill the object store of every node, for `seconds` after that. Returns the bytes taken from each."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    there = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    hogs = [Hog.options(scheduling_strategy=strategy).remote() for strategy in there]
    held = ray.get([hog.fill.remote() for hog in hogs])
    for hog in hogs:
        hog.stay.remote(seconds)
    return held
