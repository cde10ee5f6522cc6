"""Actors that work side by side, on devices of their own or sharing the cores of one machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

Condition = Callable[[], bool]
Script = Iterator[float | Condition]
"""What an actor does, in order. It yields seconds of work, counted at full speed, or a condition to wait for."""
ROUNDING = 1e-12


@dataclass(eq=False)
class Actor:
    """Follows its script. `threads` compute while it works; 0 for work that leaves the cores alone."""

    role: str
    threads: int
    script: Script
    left: float = 0.0
    """Seconds of work that are left."""
    condition: Condition | None = None
    """What it waits for."""

    def advance(self) -> bool:
        """Take the script's next step, unless there is work left or something to wait for; whether it did."""
        if self.left > ROUNDING or not (self.condition is None or self.condition()):
            return False
        step = next(self.script)
        self.left, self.condition = (0.0, step) if callable(step) else (step, None)
        return True


class Machine:
    """Runs actors and adds up how long each role was busy.

    If the working actors have more threads than there are `cores`, all slow down in proportion (processor sharing). Without
    `cores` nothing slows down.
    """

    def __init__(self, actors: Sequence[Actor], cores: float | None) -> None:
        self.actors, self.cores = actors, cores
        self.now = 0.0
        self.reset()

    def reset(self) -> None:
        """Start adding up again from now."""
        self.since = self.now
        self.busy = {actor.role: 0.0 for actor in self.actors}
        """Actor-seconds of work by role."""
        self.core_seconds = 0.0

    def run(self, finished: Condition) -> None:
        """Let time pass until `finished`. Of actors that can go on at the same moment, those listed first go first."""
        while True:
            while sum(actor.advance() for actor in self.actors):
                pass
            if finished():
                return
            self._pass([actor for actor in self.actors if actor.left > ROUNDING])

    def _pass(self, working: list[Actor]) -> None:
        """Go to the moment at which the first of them ends its work."""
        if not working:
            raise RuntimeError("every actor waits for another")
        demand = sum(actor.threads for actor in working)
        speed = 1.0 if self.cores is None or demand <= self.cores else self.cores / demand
        shortest = min(actor.left for actor in working)
        self.now += shortest / speed
        self.core_seconds += shortest * demand
        for actor in working:
            self.busy[actor.role] += shortest / speed
            actor.left -= shortest
