"""Recovery of actors that are lost with their node."""

from __future__ import annotations

import logging
import time

from launch.cluster.learner_group import LearnerGroup
from launch.cluster.places import Place, Placement
from launch.cluster.pool import Pool
from launch.configs.cluster import Role
from launch.rl.worker import LearnerLost

logger = logging.getLogger(__name__)

EVERY = 3.0
"""Seconds between checks. If a place is lost at two checks in a row, no other node has room for it."""


class Failover:
    """Actors of a lost node wait for capacity; an essential one takes a rollout worker's place meanwhile."""

    def __init__(self, placement: Placement, rollout: Pool, reward: Pool, learners: LearnerGroup) -> None:
        self._placement, self._rollout, self._reward, self._learners = placement, rollout, reward, learners
        self._looked = 0.0
        self._lost: set[Place] = set()

    def look(self) -> None:
        """Call this often; it acts every few seconds.

        Raises LearnerLost if a learner moves to another place: all learners must then start again.
        """
        now = time.monotonic()
        if now - self._looked < EVERY:
            return
        self._looked = now
        self._renew()
        lost = {place for place in self._needed() if self._placement.is_lost(place)}
        for place in sorted(lost & self._lost):
            self._take_over(place)
        self._lost = lost

    def _renew(self) -> None:
        pools: dict[Role, Pool] = {"rollout": self._rollout, "reward": self._reward}
        for role, pool in pools.items():
            for number, member in enumerate(pool.members):
                if not member.ready and self._placement.renew((role, number)):
                    pool.move(number)

    def _needed(self) -> list[Place]:
        """Missing actors that the run cannot continue without."""
        needed: list[Place] = [("learner", n) for n, member in enumerate(self._learners.members) if not member.ready]
        if not any(member.ready for member in self._reward.members):
            needed.append(("reward", 0))
        return needed

    def _take_over(self, place: Place) -> None:
        role, number = place
        ready = [n for n, member in enumerate(self._rollout.members) if member.ready]
        spare = [n for n in ready[1:] if self._placement.has_room(("rollout", n), role)]
        if not spare:
            return
        away, name = spare[-1], f"{role}-{number}"
        reason = f"{name} lost its node, and no other has room: it takes the place of rollout-{away}"
        logger.warning("%s, which returns when there is room again", reason)
        self._placement.take_over(place, ("rollout", away))
        self._rollout.move(away)
        if role == "learner":
            raise LearnerLost(reason)
        self._reward.move(number)
