"""Actors that work through queues, on devices of their own or sharing the cores of one machine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Job:
    """Work for one actor. `seconds` is asked when an actor takes the job, since it can depend on which one does."""

    seconds: Callable[[Actor], float]
    done: Callable[[], None]


@dataclass(eq=False)
class Actor:
    """Does one job at a time, in the order of its queue. Actors that share a queue pull from it as they fall idle."""

    role: str
    threads: int
    """Threads that compute while it works; 0 for work that leaves the cores alone."""
    queue: deque[Job] = field(default_factory=deque)
    version: int = 0
    """Of the weights it holds."""
    held: bool = False
    """Waits for others inside a call, and takes no job meanwhile."""
    job: Job | None = None
    left: float = 0.0
    """Seconds of the job that are left, at full speed."""


class Machine:
    """Runs actors side by side, and adds up who was busy for how long.

    With `cores`, more active threads than cores slow all jobs in proportion (processor sharing); without, nothing slows.
    """

    def __init__(self, actors: Sequence[Actor], cores: float | None) -> None:
        self.actors, self.cores = actors, cores
        self.now = 0.0
        self.reset()

    def reset(self) -> None:
        """Forget who was busy until now."""
        self.since = self.now
        self.busy = {actor.role: 0.0 for actor in self.actors}
        """Actor-seconds of work by role."""
        self.core_seconds = 0.0

    def run(self, finished: Callable[[], bool]) -> None:
        """Let time pass until `finished`, which is looked at whenever a job ends."""
        while not finished():
            self._start()
            active = [actor for actor in self.actors if actor.job is not None]
            if not active:
                raise RuntimeError("the schedule waits for work that nobody was given")
            self._pass(active)

    def _start(self) -> None:
        for actor in self.actors:
            if actor.job is None and actor.queue and not actor.held:
                actor.job = actor.queue.popleft()
                actor.left = actor.job.seconds(actor)

    def _pass(self, active: list[Actor]) -> None:
        """Go to the end of the job that ends first."""
        demand = sum(actor.threads for actor in active)
        speed = 1.0 if self.cores is None or demand <= self.cores else self.cores / demand
        shortest = min(actor.left for actor in active)
        self.now += shortest / speed
        self.core_seconds += shortest * demand
        ended = []
        for actor in active:
            self.busy[actor.role] += shortest / speed
            actor.left -= shortest
            if actor.left <= 1e-12 and actor.job is not None:
                ended.append(actor.job)
                actor.job = None
        for job in ended:
            job.done()
