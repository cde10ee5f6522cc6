"""Track the learners' weights, and send them to the rollout workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ray.exceptions import ObjectLostError

from launch.cluster.pool import LOST, Calls, Member, Pool
from launch.rl.worker import LearnerLost
from learner.grpo.actor import WeightsInfo
from rollout.actor import SyncInfo
from stylevar.contracts import PolicyVersion


class WeightsDiverged(RuntimeError):
    """Workers that should hold the same weights hold different ones."""


class Weights:
    """The newest version, and references to the adapters of every version that is still used for sampling.

    Every worker starts from the same base and replays the same merges, so only adapters are sent.
    """

    def __init__(self, rollout: Pool, calls: Calls, hashed: bool, synced: Callable[[SyncInfo], None]) -> None:
        """`hashed`: compare a hash of all effective weights after every sync and merge. `synced` is called for each."""
        self._rollout, self._calls, self._hashed, self._synced = rollout, calls, hashed, synced
        self.version = PolicyVersion(0, 0)
        self.adapters: dict[PolicyVersion, Any] = {}
        self._merges: list[Any] = []
        self._first_merge = 0
        self._fingerprints: dict[PolicyVersion, str] = {}

    def restart(self, version: PolicyVersion) -> bool:
        """Start over from the base of `version`. Returns whether workers have replayed merges on top of their base."""
        replayed = bool(self._merges)
        self.version, self.adapters, self._merges, self._first_merge = version, {}, [], version.merges
        self._fingerprints = {}
        for member in self._rollout.members:
            member.held = None
        return replayed

    def take(self, adapters: Any, infos: Sequence[WeightsInfo], snapshot: Any = None, updated: bool = False) -> None:
        """Make the learners' current weights the newest version; `adapters` is a reference to their adapters.

        `snapshot`: a reference to the adapters that a merge has just baked into the base. `updated`: the version comes from
        an update, which must have changed the weights. Raises WeightsDiverged.
        """
        versions = {(info.version, info.fingerprint) for info in infos}
        if len(versions) > 1:
            raise WeightsDiverged(f"the learners hold different weights: {sorted(versions, key=str)}")
        ((version, fingerprint),) = versions
        if snapshot is not None:
            self._merges.append(snapshot)
        self.adapters.setdefault(version, adapters)
        if fingerprint is not None:
            if updated and version != self.version and fingerprint == self._fingerprints.get(self.version):
                raise WeightsDiverged(f"{version} should differ from {self.version}, but no weight has changed")
            self._fingerprints[version] = fingerprint
        self.version = version

    def keep_only(self, versions: Iterable[PolicyVersion]) -> None:
        """Drop the adapters of all versions except these and the newest."""
        wanted = {self.version, *versions}
        self.adapters = {version: reference for version, reference in self.adapters.items() if version in wanted}

    def sync(self, member: Member, version: PolicyVersion) -> None:
        """Bring a rollout worker to `version`: it replays the merges that it lacks and loads the adapters."""
        if member.held == version:
            return
        held = self._first_merge if member.held is None else member.held.merges
        merges = self._merges[held - self._first_merge : version.merges - self._first_merge]
        reference = member.actor.sync.remote(merges, [self.adapters[version]], version, self._hashed)
        member.held = version

        def done(info: SyncInfo) -> None:
            self._synced(info)
            expected = self._fingerprints.get(version)
            if info.fingerprint is not None and expected is not None and info.fingerprint != expected:
                raise WeightsDiverged(
                    f"after the sync of {version}, {member.name} holds weights with the hash {info.fingerprint}, but the "
                    f"learner's have {expected}: their base models or devices differ"
                )

        def failed(error: BaseException) -> None:
            if isinstance(error, ObjectLostError):
                raise LearnerLost(f"the adapters of {version} were lost with the learner that made them") from error
            if not isinstance(error, LOST):
                raise error
            self._rollout.lost(member, error)

        self._calls.add(f"the sync of {version}", member, reference, done, failed)
