"""The learner as a Ray actor, alone or as one of a group that averages gradients through torch.distributed."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from learner.grpo.config import LearnerConfig
from learner.grpo.merging import MergeAction
from learner.grpo.trainer import Trainer
from learner.lesson import Lesson
from stylevar.allocator import keep_freed_memory
from stylevar.conditions import ConditionState
from stylevar.contracts import (
    CallInfo,
    ConditionBatch,
    PolicyVersion,
    Scores,
    StepMetrics,
    Trajectories,
    TrajectoryRows,
)
from stylevar.policy import Policy, PolicySource
from stylevar.role_log import RoleLog
from stylevar.wire import AdapterWire, WirePrecision


@dataclass(frozen=True)
class WeightsInfo(CallInfo):
    """The version that a learner now holds and, if requested, a hash of its effective weights as rollout workers will hold
    them."""

    version: PolicyVersion
    fingerprint: str | None = None


@dataclass(frozen=True)
class UpdateInfo(WeightsInfo):
    """Scalars over all learners, and the rows of each of this learner's units."""

    metrics: StepMetrics | None = None
    rows: tuple[tuple[int, TrajectoryRows], ...] = ()


@dataclass(frozen=True)
class _Prepared:
    state: ConditionState
    trajectories: Trajectories
    reference: Tensor


class LearnerWorker:
    """Call `setup`, `join` if there are several, `restore` for a checkpoint, then `prepare` units and `update`.

    All learners of a group get the same calls, except for their own units.
    """

    def __init__(self, name: str) -> None:
        self._log = RoleLog(name)
        self._prepared: dict[tuple[int, int], _Prepared] = {}

    def setup(
        self,
        source: PolicySource,
        config: LearnerConfig,
        temperature: float,
        precision: WirePrecision,
        device: str,
        threads: int,
        steps: int,
        scarce_memory: bool = False,
    ) -> dict[str, Any]:
        """Load the base model for a run of `steps` steps. Returns facts about the model. `scarce_memory`: see
        `keep_freed_memory`.

        Raises UserError if files cannot be used.
        """
        keep_freed_memory(scarce_memory)
        torch.set_num_threads(threads)
        self._policy = Policy(source, torch.device(device))
        self._trainer = Trainer(self._policy, config, temperature, steps=steps)
        self._precision: WirePrecision = precision
        shape = {"image_size": self._policy.image_size, "vae": self._policy.vae_fingerprint}
        return {**self._policy.describe(), **shape}

    def address(self) -> str:
        """The address for the learners' process group: a free port of this machine."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def join(self, address: str, rank: int, world: int, timeout: float) -> None:
        """Become number `rank` of `world` learners."""
        backend = "nccl" if self._policy.device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, init_method=address, rank=rank, world_size=world, timeout=timedelta(seconds=timeout)
        )

    def restore(self, checkpoint: Path) -> None:
        """Continue from a checkpoint; `setup` must have loaded its base."""
        self._trainer.load(checkpoint)

    def prepare(self, step: int, unit: int, work: tuple[ConditionBatch, Trajectories]) -> CallInfo:
        """Prepare a unit for `update`: encode its conditions and compute the reference policy's log-probs."""
        start, self._log.step = time.perf_counter(), step
        batch, trajectories = work
        state = self._trainer.encode(batch)
        trajectories = trajectories.to(self._policy.device)
        reference = self._trainer.learner.reference(state, trajectories)
        self._prepared[step, unit] = _Prepared(state, trajectories, reference)
        return CallInfo(time.perf_counter() - start)

    def update(
        self, step: int, minibatches: Sequence[Sequence[int]], hashed: bool, *scores: Scores
    ) -> tuple[AdapterWire | None, UpdateInfo]:
        """One GRPO step on prepared units and their `scores`, in order. The first learner returns the adapters."""
        start, self._log.step = time.perf_counter(), step
        order = [unit for some in minibatches for unit in some]
        scored = dict(zip(order, scores, strict=True))
        work = {unit: self._prepared.pop((step, unit)) for unit in order}
        before = self._policy.version
        # Workers that sampled with other adapters, or with rounded ones, used other probabilities.
        fresh = self._precision == "fp32" and all(w.trajectories.policy_version == before for w in work.values())
        lessons = {
            unit: Lesson(w.state, w.trajectories, w.reference, scored[unit].rewards, scored[unit].detail)
            for unit, w in work.items()
        }
        with self._policy.adapters.effective_weights():
            result = self._trainer.update(step, [[lessons[unit] for unit in some] for some in minibatches], fresh)
        rows, at = [], 0
        for unit in order:
            trajectories, count = work[unit].trajectories, len(work[unit].trajectories.keys)
            own = slice(at, at + count)
            rows.append((unit, TrajectoryRows.of(trajectories, scored[unit], result.advantages[own], result.kl[own])))
            at += count
        wire, info = self._weights(start, hashed)
        update = UpdateInfo(info.seconds, info.version, info.fingerprint, result.metrics, tuple(rows))
        return wire, update

    def weights(self, hashed: bool) -> tuple[AdapterWire | None, WeightsInfo]:
        """The current adapters, from the first learner only."""
        return self._weights(time.perf_counter(), hashed)

    def apply(self, action: MergeAction, hashed: bool) -> tuple[AdapterWire | None, AdapterWire | None, WeightsInfo]:
        """Carry out an action of the merge controller. The first learner returns the adapters baked into the base and the
        new adapters, or None for those that did not change."""
        start = time.perf_counter()
        baked = self._trainer.apply(action)
        # Never rounded, because it becomes part of the base.
        snapshot = None if baked is None or not self._first else AdapterWire.pack(baked)
        if not action.changes_weights:
            return None, None, WeightsInfo(time.perf_counter() - start, self._policy.version)
        self._prepared.clear()
        wire, info = self._weights(start, hashed)
        return snapshot, wire, info

    def forget(self) -> None:
        """Drop prepared units that were not used in an update."""
        self._prepared.clear()

    def save(self, folder: Path, base: str, older: Mapping[PolicyVersion, Sequence[Any]]) -> None:
        """Write a checkpoint into an existing folder, with `older` adapters (references) that workers still sample with."""
        self._trainer.save(folder, base)
        for version, (reference,) in older.items():
            save_file(ray.get(reference).unpack(), str(older_adapters(folder, version)))

    def read_older(self, path: Path) -> AdapterWire:
        """Read older adapters that `save` wrote."""
        return AdapterWire.pack(load_file(str(path)), self._precision)

    def save_base(self, folder: Path) -> None:
        """See `Trainer.save_base`."""
        self._trainer.save_base(folder)

    def save_policy(self, folder: Path) -> None:
        """See `Trainer.save_policy`."""
        self._trainer.save_policy(folder)

    @property
    def _first(self) -> bool:
        return not dist.is_initialized() or dist.get_rank() == 0

    def _weights(self, start: float, hashed: bool) -> tuple[AdapterWire | None, WeightsInfo]:
        adapters = self._policy.adapters
        wire = AdapterWire.pack(adapters.state(), self._precision) if self._first or hashed else None
        fingerprint = None
        if hashed and wire is not None:
            exact = adapters.state()
            adapters.load({name: value.to(self._policy.device) for name, value in wire.unpack().items()})
            fingerprint = adapters.fingerprint()
            adapters.load(exact)
        info = WeightsInfo(time.perf_counter() - start, self._policy.version, fingerprint)
        return wire if self._first else None, info


def older_adapters(folder: Path, version: PolicyVersion) -> Path:
    """The path of the adapters of an older version in a checkpoint."""
    return folder / f"adapters_{version.merges}_{version.updates}.safetensors"
