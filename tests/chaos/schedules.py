"""Schedules of faults, drawn from seeds."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from faults import ActorFault, CallFault, ClockFault, Fault, FileFault, StoreFault
from fickle import WAYS

PARTS = {
    "a checkpoint": "/{name}/checkpoints/",
    "a merge": "/{name}/merges/",
    "the model": "/{name}/.aside-model",
    "Parquet": "/{name}/trajectories/",
    "TensorBoard": "/{name}/tensorboard/",
    "held-out scores": "/{name}/heldout/",
    "anything": "/runs/{name}",
}
"""What a run writes, and what its paths contain."""
CALLS = {"setup": 1, "step": 4, "evaluate": 4, "apply": 3, "save": 2, "save_base": 2, "save_policy": 1}
"""A worker's methods, and roughly how often a run calls them."""
ROLES = ("RolloutWorker", "RewardWorker", "LearnerWorker", "ConditionReader")
PHASES = {"setup": 1, "_sample_and_score": 4, "_update": 4, "evaluate": 4, "apply": 3, "save": 2, "save_base": 2}
PHASES |= {"save_policy": 1}
"""The same of the distributed worker."""
DAY = 86400.0


@dataclass(frozen=True)
class Schedule:
    """What happens to one run: every program but the last has its faults, and the last one must reach the end.

    staleness: of a distributed run; None for one in a single process. mood: how the reward behaves, see `fickle.py`.
    damage: which file of the newest checkpoint is damaged before the last program, and which share of it is kept. disk: the
    size of the disk for all but the last program, as a share of what the run needs.
    """

    seed: int
    kind: str
    programs: tuple[tuple[Fault, ...], ...]
    staleness: int | None = None
    mood: str = ""
    damage: tuple[float, float] | None = None
    disk: float | None = None

    @property
    def name(self) -> str:
        return f"{'local' if self.staleness is None else 'ray'}-{self.seed}"


Operations = Callable[[str], int]
"""How many operations a run takes on files whose path contains a text."""


def local(seed: int, operations: Operations) -> Schedule:
    """The schedule of a seed for a run in one process."""
    draw = random.Random(seed)
    kind = LOCAL[seed % len(LOCAL)]
    if kind in ("kill", "full", "EIO"):
        # Now and then the program that resumes meets the same fate.
        title = draw.choice(list(PARTS))
        verb = {"kill": "SIGKILL while writing", "full": "no space for", "EIO": "I/O error while writing"}[kind]
        programs = tuple((_in_files(draw, kind, operations, title),) for _ in range(draw.choice((1, 1, 2, 3))))
        return Schedule(seed, f"{verb} {title}", programs)
    if kind == "disk":
        return Schedule(seed, "a small tmpfs", ((),), disk=draw.random())
    if kind == "TERM":
        method = draw.choice(list(CALLS))
        number = draw.choice(("SIGTERM", "SIGTERM", "SIGINT", "SIGHUP"))
        if draw.random() < 0.4:
            return Schedule(seed, "SIGTERM while writing", ((_in_files(draw, "TERM", operations),),))
        return Schedule(seed, f"{number} during {method}", ((CallFault(method, draw.randint(1, CALLS[method]), number),),))
    if kind == "damage":
        fault = CallFault("step", draw.randint(3, 4), draw.choice(("SIGTERM", "SIGKILL")))
        return Schedule(
            seed, "the newest checkpoint damaged", ((fault,),), damage=(draw.random(), draw.choice((-1, 0, draw.random())))
        )
    if kind == "second":
        # From the third operation on, the first driver has its lock.
        fault = FileFault(PARTS["anything"], draw.randint(3, operations(PARTS["anything"])), "second")
        return Schedule(seed, "a second driver", ((fault,),))
    if kind == "clock":
        first, second = (ClockFault(draw.uniform(-9 * DAY, 9 * DAY)) for _ in range(2))
        jump = FileFault(PARTS["anything"], draw.randint(1, operations(PARTS["anything"])), "clock", draw.uniform(-DAY, DAY))
        stop = CallFault("step", draw.randint(2, 4), draw.choice(("SIGTERM", "SIGKILL")))
        return Schedule(seed, "a clock that jumps", ((first, jump, stop), (second, stop)))
    way = draw.choice(WAYS)
    return Schedule(seed, f"a reward that {way}", ((),), mood=f"{draw.randint(1, 19)} {way}")


LOCAL = ("kill", "full", "EIO", "TERM", "kill", "full", "damage", "kill", "EIO", "reward", "second", "kill", "clock", "disk")


def _in_files(draw: random.Random, what: str, operations: Operations, title: str = "") -> FileFault:
    part = PARTS[title or draw.choice(list(PARTS))]
    return FileFault(part, draw.randint(1, operations(part)), what)


def distributed(seed: int) -> Schedule:
    """The schedule of a seed for a run on a Ray cluster."""
    draw = random.Random(seed)
    kind, staleness = RAY[seed % len(RAY)], seed // len(RAY) % 2
    if kind == "reward":
        way = WAYS[seed // len(RAY) % len(WAYS)]
        return Schedule(seed, f"a reward that {way}", ((),), staleness, mood=f"{draw.randint(8, 20)} {way}")
    if kind == "driver":
        number = draw.choice(("SIGKILL", "SIGTERM", "SIGSTOP"))
        programs = ((_actor(draw, "driver", number),),)
        return Schedule(seed, f"{number} of the driver", programs, staleness)
    if kind == "node":
        return Schedule(seed, "a lost node", ((_actor(draw, "raylet", "SIGKILL"),),), staleness)
    if kind == "store":
        phase = draw.choice(list(PHASES))
        fault = StoreFault(phase, draw.randint(1, PHASES[phase]), draw.uniform(0, 60))
        return Schedule(seed, "full object stores", ((fault,),), staleness)
    faults = tuple(_actor(draw, draw.choice(ROLES), kind) for _ in range(3 if kind == "SIGKILL" else 2))
    return Schedule(seed, f"{kind} of actors", (faults,), staleness)


RAY = ("SIGKILL", "driver", "node", "store", "SIGSTOP", "reward")


def _actor(draw: random.Random, role: str, number: str) -> ActorFault:
    phase = draw.choice(list(PHASES))
    return ActorFault(phase, draw.randint(1, PHASES[phase]), draw.randint(0, 3), role, draw.randint(0, 1), number)
