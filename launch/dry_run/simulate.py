"""How long a GRPO step takes and who is busy meanwhile: a discrete-event simulation of the schedule.

The conditions of a step are split into units. Idle rollout workers take the next unit, in order. Once a unit is sampled, an
idle reward worker scores its images. Meanwhile, or after that with `in_turn`, the unit's learner prepares it: it encodes the
conditions and computes the log-probs of the reference. When all units of a step are scored and prepared, the learners update
together, with one optimizer step per minibatch. This makes a new version of the adapters, which each rollout worker loads
before the first unit that it samples with it.

With staleness s, the units of the next s steps are handed out before the update of a step begins.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from launch.configs.cluster import ROLES, Role
from launch.dry_run.machine import Actor, Machine, Script


@dataclass(frozen=True)
class Costs:
    """Seconds of work for an actor that has its device to itself. Costs per condition include its G trajectories."""

    read: float
    """Reading a condition from its shard; part of sampling it."""
    encode: float
    """Encoding a condition, by the worker that samples it."""
    encode_again: float
    """Encoding a condition again, by a learner in another process, which receives its VQ tokens."""
    sample: float
    """Sampling and decoding, per condition."""
    score: float
    """Scoring, per condition."""
    reference: float
    """Log-probs under the reference policy, per condition."""
    update: float
    """Forward and backward pass, per condition."""
    optimizer: float
    """One optimizer step, and the effective weights after it."""
    reduce: float
    """Averaging the gradients of several learners, per optimizer step."""
    publish: float
    """Packing the adapters, per step, by a learner in another process."""
    sync: float
    """Loading one version of the adapters into one rollout worker, and computing its effective weights."""
    driver: float
    """What the driver does between two steps."""


@dataclass(frozen=True)
class Schedule:
    """The plan of a step: its units (conditions of each, by minibatch), and who works on them."""

    units: tuple[tuple[int, ...], ...]
    rollout_workers: int = 1
    reward_workers: int = 1
    learners: int = 1
    max_staleness: int = 0
    updates_per_rollout: int = 1
    cores: float | None = None
    """Cores that all actors share; None where each has a device of its own."""
    threads: Mapping[Role, int] = field(default_factory=lambda: dict.fromkeys(ROLES, 1))
    """Threads of each actor of a role."""
    in_turn: bool = False
    """A unit is prepared after it is scored, not at the same time."""

    @property
    def conditions(self) -> int:
        """Conditions of a step (B)."""
        return sum(map(sum, self.units))

    @property
    def count(self) -> int:
        """Units of a step."""
        return sum(map(len, self.units))


@dataclass(frozen=True)
class Prediction:
    """A step with a full pipeline: its time, and the share of it that each role's actors and the cores are busy."""

    step_seconds: float
    utilisation: Mapping[Role, float]
    cores: float | None = None

    @property
    def busiest(self) -> Role:
        """The role that is idle the least."""
        return max(ROLES, key=lambda role: self.utilisation[role])


def simulate(schedule: Schedule, costs: Costs, steps: int = 24) -> Prediction:
    """The mean of `steps` steps after the first few, which fill the pipeline."""
    run = _Run(schedule, costs)
    fill = 2 + 2 * schedule.max_staleness
    run.until(fill)
    run.machine.reset()
    run.until(fill + steps)
    machine = run.machine
    passed = machine.now - machine.since
    workers: dict[Role, int] = {
        "rollout": schedule.rollout_workers,
        "reward": schedule.reward_workers,
        "learner": schedule.learners,
    }
    return Prediction(
        step_seconds=passed / steps,
        utilisation={role: machine.busy[role] / (passed * count) for role, count in workers.items()},
        cores=None if schedule.cores is None else machine.core_seconds / (passed * schedule.cores),
    )


def serial(schedule: Schedule, costs: Costs) -> Prediction:
    """The colocated placement: one process does everything in turn, and encodes each condition once."""
    c, conditions = costs, schedule.conditions
    passes = schedule.updates_per_rollout
    seconds: dict[Role, float] = {
        "rollout": conditions * (c.read + c.encode + c.sample),
        "reward": conditions * c.score,
        "learner": conditions * (c.reference + passes * c.update) + passes * len(schedule.units) * c.optimizer,
    }
    total = sum(seconds.values()) + c.driver
    return Prediction(total, {role: seconds[role] / total for role in ROLES})


@dataclass(frozen=True)
class _Unit:
    """`size` conditions of a step, to be sampled with the weights of `version`; `learner` prepares them."""

    step: int
    size: int
    learner: int
    version: int


class _Run:
    """The scripts of all actors of a run, and what they share."""

    def __init__(self, schedule: Schedule, costs: Costs) -> None:
        self.schedule, self.costs = schedule, costs
        self.version = 0
        """Of the weights: the updates done, and so the step that is worked on."""
        self.launched = 0
        """Steps whose units are out."""
        self.open: dict[int, int] = {}
        """By step, what is left to do before its update: each unit is scored and prepared."""
        self.to_sample: deque[_Unit] = deque()
        self.to_score: deque[_Unit] = deque()
        self.to_prepare: list[deque[_Unit]] = [deque() for _ in range(schedule.learners)]
        self.updating = False
        self.to_learn: list[float | None] = [None] * schedule.learners
        """Seconds of each learner's part in the update."""
        threads = schedule.threads
        self.machine = Machine(
            [
                Actor("driver", 0, self._driver()),
                *(Actor("rollout", threads["rollout"], self._rollout()) for _ in range(schedule.rollout_workers)),
                *(Actor("reward", threads["reward"], self._reward()) for _ in range(schedule.reward_workers)),
                *(Actor("learner", threads["learner"], self._learner(rank)) for rank in range(schedule.learners)),
            ],
            schedule.cores,
        )

    def until(self, updates: int) -> None:
        self.machine.run(lambda: self.version >= updates)

    def _driver(self) -> Script:
        c, s = self.costs, self.schedule
        step = c.optimizer + (c.reduce if s.learners > 1 else 0.0)
        while True:
            self._launch(through=self.version)
            yield lambda: self.open[self.version] == 0
            self._launch(through=self.version + s.max_staleness)
            self.updating = True
            for minibatch in s.units * s.updates_per_rollout:
                yield from self._learn([c.update * sum(minibatch[rank :: s.learners]) for rank in range(s.learners)])
                yield from self._learn([step] * s.learners)
            yield from self._learn([c.publish] * s.learners)
            self.updating = False
            yield c.driver
            self.version += 1

    def _launch(self, through: int) -> None:
        """Hand out the units of all steps up to `through` that are not out yet, with the weights of now."""
        for step in range(self.launched, through + 1):
            self.open[step] = 2 * self.schedule.count
            for minibatch in self.schedule.units:
                for number, size in enumerate(minibatch):
                    self.to_sample.append(_Unit(step, size, number % self.schedule.learners, self.version))
        self.launched = max(self.launched, through + 1)

    def _learn(self, seconds: list[float]) -> Script:
        """Every learner does its part of the update; the earlier ones wait for the last."""
        self.to_learn = [*seconds]
        yield lambda: all(part is None for part in self.to_learn)

    def _rollout(self) -> Script:
        c, version = self.costs, 0
        while True:
            yield lambda: bool(self.to_sample)
            unit = self.to_sample.popleft()
            load = c.sync if version < unit.version else 0.0
            version = unit.version
            yield load + unit.size * (c.read + c.encode + c.sample)
            self.to_score.append(unit)
            if not self.schedule.in_turn:
                self.to_prepare[unit.learner].append(unit)

    def _reward(self) -> Script:
        while True:
            yield lambda: bool(self.to_score)
            unit = self.to_score.popleft()
            yield unit.size * self.costs.score
            self.open[unit.step] -= 1
            if self.schedule.in_turn:
                self.to_prepare[unit.learner].append(unit)

    def _learner(self, rank: int) -> Script:
        c, units = self.costs, self.to_prepare[rank]
        while True:
            yield lambda: self.to_learn[rank] is not None if self.updating else bool(units)
            if (part := self.to_learn[rank]) is not None:
                yield part
                self.to_learn[rank] = None
            else:
                unit = units.popleft()
                yield unit.size * (c.encode_again + c.reference)
                self.open[unit.step] -= 1
