"""The learners of a run. They work synchronously, so if one is lost, all of them must restart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayTaskError

from launch.cluster.places import Placement
from launch.cluster.pool import LOST, Calls, Member
from launch.common.ray_cluster import why_lost
from launch.configs.grpo import GrpoConfig
from launch.rl.worker import LearnerLost
from learner.grpo.update import LogprobMismatch
from stylevar.policy import PolicySource


@dataclass
class GroupCall:
    """One call to several learners: the references that each returned, and its small result once it has arrived."""

    references: list[Sequence[Any]]
    infos: list[Any]

    @property
    def done(self) -> bool:
        return None not in self.infos


class LearnerGroup:
    """K learners. The first one writes checkpoints and provides the adapters."""

    def __init__(self, placement: Placement, config: GrpoConfig, calls: Calls) -> None:
        self._placement, self._config, self._calls = placement, config, calls
        self.members = [Member(name) for name in placement.names("learner", config.cluster.learners)]
        self.restarts = 0

    @property
    def first(self) -> Member:
        return self.members[0]

    def start(self, source: PolicySource) -> GroupCall:
        """Create the actors and have them load the run's base."""
        config, threads = self._config, self._placement.threads("learner", self._config.threads)
        for number, member in enumerate(self.members):
            member.actor, member.ready = self._placement.create("learner", number), False
        place, scarce = (self._placement.device, threads), config.scarce_memory(self._placement.device)
        settings = (source, config.learner, config.rollout.temperature, config.cluster.wire, *place, config.steps, scarce)
        return self.call("setup", "setup", *settings)

    def join(self, address: str) -> GroupCall:
        """Connect the learners with each other at the `address` of the first."""
        world, timeout = len(self.members), self._config.cluster.call_timeout
        return self.call_each("joining", "join", lambda rank: (address, rank, world, timeout))

    def restore(self, checkpoint: Path) -> GroupCall:
        return self.call("restoring", "restore", checkpoint)

    def call(self, what: str, method: str, *arguments: Any, returns: int = 1) -> GroupCall:
        """Make the same call to all learners. The last of the `returns` values is the small result."""
        return self.call_each(what, method, lambda _: arguments, returns)

    def call_each(self, what: str, method: str, arguments: Callable[[int], Sequence[Any]], returns: int = 1) -> GroupCall:
        """Like `call`, with arguments that depend on the learner's number."""
        numbers = range(len(self.members))
        return self._call(what, method, numbers, arguments, returns)

    def call_first(self, what: str, method: str, *arguments: Any, returns: int = 1) -> GroupCall:
        """Call only the first learner."""
        return self._call(what, method, range(1), lambda _: arguments, returns)

    def prepare(
        self, what: str, number: int, arguments: Sequence[Any], done: Callable[[], None], lost_input: Callable[[], None]
    ) -> None:
        """Have one learner prepare a unit."""
        member = self.members[number]

        def failed(error: BaseException) -> None:
            if isinstance(error, ObjectLostError):
                lost_input()
            else:
                self._failed(what, member, error)

        self._calls.add(what, member, member.actor.prepare.remote(*arguments), lambda _: done(), failed)

    def kill(self) -> None:
        """End all learners."""
        for member in self.members:
            self._calls.forget(member)
            if member.actor is not None:
                ray.kill(member.actor)

    def _call(
        self, what: str, method: str, numbers: range, arguments: Callable[[int], Sequence[Any]], returns: int
    ) -> GroupCall:
        call = GroupCall([], [None] * len(numbers))
        for number in numbers:
            member = self.members[number]
            returned = getattr(member.actor, method).options(num_returns=returns).remote(*arguments(number))
            references = returned if returns > 1 else [returned]
            call.references.append(references)

            def done(info: Any, number: int = number, member: Member = member) -> None:
                member.ready = True
                call.infos[number] = True if info is None else info

            def failed(error: BaseException, member: Member = member) -> None:
                self._failed(what, member, error)

            self._calls.add(what, member, references[-1], done, failed)
        return call

    def _failed(self, what: str, member: Member, error: BaseException) -> None:
        # A surviving learner may report the broken connection before Ray reports the death of the other one.
        fellow_gone = len(self.members) > 1 and isinstance(error, RayTaskError) and isinstance(error.cause, RuntimeError)
        mismatch = isinstance(error, RayTaskError) and isinstance(error.cause, LogprobMismatch)
        if isinstance(error, (*LOST, ObjectLostError)) or (fellow_gone and not mismatch):
            raise LearnerLost(f"{member.name} was lost in {what} ({why_lost(error)})") from error
        raise error
