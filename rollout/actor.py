"""The sampler as a Ray actor: it holds one copy of the policy and samples with the version it was last synced to."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import ray
import torch
from torch import Tensor

from rollout.config import RolloutConfig
from rollout.prefixes import images_to_score
from rollout.sampler import GroupSampler
from stylevar.allocator import keep_freed_memory
from stylevar.contracts import CallInfo, ConditionBatch, PolicyVersion, RewardDetail, Trajectories
from stylevar.policy import Policy, PolicySource
from stylevar.role_log import RoleLog
from stylevar.sampling import CoupledStreams
from stylevar.wire import AdapterWire


class WrongVersion(RuntimeError):
    """A worker got work for a policy version that it does not hold."""


@dataclasses.dataclass(frozen=True)
class SyncInfo(CallInfo):
    """The result of a sync: the weights now held (a hash, if requested), and the number of bytes received."""

    nbytes: int = 0
    fingerprint: str | None = None


class RolloutWorker:
    """Call `setup`, then `sync` before the first `sample` and whenever the weights change."""

    def __init__(self, name: str) -> None:
        self.name, self._log = name, RoleLog(name)

    def setup(
        self,
        source: PolicySource,
        config: RolloutConfig,
        heldout: RolloutConfig,
        device: str,
        threads: int,
        detail: RewardDetail = "none",
        branch_after: int | None = None,
    ) -> dict[str, Any]:
        """Load the run's base.

        Args:
            heldout: sampling settings for held-out evaluation.
            detail: the additional reward output that the credit needs in training.
            branch_after: see `GroupSampler`; for training.
        Raises:
            UserError: files cannot be used, or the model has too few scales to branch.
        """
        keep_freed_memory()
        torch.set_num_threads(threads)
        self._policy = Policy(source, torch.device(device))
        self._policy.adapters.keep_in_place = config.cuda_graphs
        self._seed, self._detail, self._decode_batch = source.seed, detail, config.decode_batch
        self._samplers = {
            False: GroupSampler(self._policy.model, config, branch_after=branch_after),
            True: GroupSampler(self._policy.model, heldout, streams=CoupledStreams),
        }
        self._version: PolicyVersion | None = None  # no adapters yet
        return self._policy.describe()

    def sync(self, merges: Sequence[Any], adapters: Sequence[Any], version: PolicyVersion, hashed: bool) -> SyncInfo:
        """Replay merges, then load the adapters of `version`.

        Args:
            merges: references to the snapshots (`AdapterWire`) of the merges that this worker has not replayed, in order.
            adapters: a reference to the adapters, in a list, so that the time to fetch them counts as part of the sync.
            hashed: also hash the effective weights.
        """
        start = time.perf_counter()
        self._version = None
        nbytes = 0
        for reference in (*merges, *adapters):
            wire: AdapterWire = ray.get(reference)
            nbytes += wire.nbytes
            state = {name: value.to(self._policy.device) for name, value in wire.unpack().items()}
            if reference in adapters:
                self._policy.load(state, version)
            else:
                self._policy.merge(state)
        self._policy.adapters.refresh()
        self._version = version
        fingerprint = self._policy.adapters.fingerprint() if hashed else None
        return SyncInfo(time.perf_counter() - start, nbytes, fingerprint)

    def sample(
        self, batch: ConditionBatch, step: int, version: PolicyVersion, group: int | None = None
    ) -> tuple[tuple[ConditionBatch, Trajectories], Tensor, CallInfo]:
        """Sample trajectories for the conditions; `group` sets their number per condition, for evaluation.

        Returns, on CPU: for the learner, the conditions with the VQ tokens of content and style, and the trajectories
        without images; for the reward, the images to score (see `images_to_score`). Raises WrongVersion.
        """
        start, self._log.step = time.perf_counter(), step
        if version != self._version:
            raise WrongVersion(f"{self.name} holds {self._version}, step {step} needs {version}: sync it first")
        sampler = self._samplers[group is not None]
        batch = sampler.conditions.tokenized(batch)
        drawn = sampler.sample(batch, self._seed, step, version, group)
        detail = self._detail if group is None else "none"
        images = images_to_score(self._policy.model.vae, drawn, detail, self._decode_batch).cpu()
        return (batch, drawn.without_images().to("cpu")), images, CallInfo(time.perf_counter() - start)

    def fingerprint(self) -> str:
        """A hash of the effective weights."""
        return self._policy.adapters.fingerprint()
