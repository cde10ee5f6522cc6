"""A Ray actor that reads conditions from the shards and sends them to the workers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.conditions import ConditionSets
from stylevar.contracts import CallInfo, ConditionBatch
from stylevar.role_log import RoleLog


@dataclass(frozen=True)
class ReadInfo(CallInfo):
    """Numbers about a read."""

    keys: tuple[str, ...]


class ConditionReader:
    """`setup` first."""

    def __init__(self, name: str) -> None:
        self._log = RoleLog(name)

    def setup(
        self, patterns: Mapping[str, Sequence[str]], image_size: int, vae: str, conditions: int, seed: int
    ) -> dict[str, int]:
        """See `ConditionSets`; returns the size of each set."""
        self._sets = ConditionSets(patterns, image_size, vae, conditions, seed)
        return self._sets.sizes()

    def of_step(self, step: int, rows: slice) -> tuple[ConditionBatch, ReadInfo]:
        """Some of the conditions of a step."""
        start, self._log.step = time.perf_counter(), step
        return self._with_info(self._sets.of_step(step, rows), start)

    def pick(self, name: str, indices: Sequence[int]) -> tuple[ConditionBatch, ReadInfo]:
        """Some of the conditions of a held-out set."""
        start = time.perf_counter()
        return self._with_info(self._sets.pick(name, indices), start)

    def _with_info(self, batch: ConditionBatch, start: float) -> tuple[ConditionBatch, ReadInfo]:
        return batch, ReadInfo(time.perf_counter() - start, batch.keys)
