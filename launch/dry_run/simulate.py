"""How long a GRPO step takes and who is busy meanwhile: a discrete-event simulation of the schedule.

A step's conditions are cut into units. Idle rollout workers pull the next unit, in order of step and unit. A sampled
unit's images go to the next idle reward worker, and at the same time (or then, in turn) its trajectories to the unit's
learner, which encodes the conditions and takes the reference pass. Once all units of a step are scored and prepared, the
learners update together, one optimizer step per minibatch. Then a new version of the adapters goes out, which every
rollout worker loads before the first unit it samples with it.

With staleness s, the units of the s steps after the one that is updated are out by the time its update begins.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from launch.configs.cluster import ROLES, Role
from launch.dry_run.machine import Actor, Job, Machine


@dataclass(frozen=True)
class Costs:
    """Seconds of work, each alone on its device or machine. Those per condition include its G trajectories."""

    read: float
    """Reading a condition from its shard; part of sampling it."""
    encode: float
    """Encoding a condition for whoever samples it."""
    encode_again: float
    """Encoding a condition for a learner in another process, which is told its VQ tokens."""
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
    """Making the adapters ready to travel, per step, by a learner in another process."""
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
    """A unit is prepared once it is scored, not meanwhile."""

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
    """A steady step: its seconds, the share of them that the actors of each role are busy, and that of the cores."""

    step_seconds: float
    utilisation: Mapping[Role, float]
    cores: float | None = None

    @property
    def busiest(self) -> Role:
        """The role with the least time to spare."""
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


class _Run:
    """A run in progress: which steps are launched, what each waits for, and the learners' passes."""

    def __init__(self, schedule: Schedule, costs: Costs) -> None:
        self.schedule, self.costs = schedule, costs
        self.updates = 0  # done so far: also the version of the weights, and the step that is worked on
        self.launched = 0
        self.open: dict[int, int] = {}  # units still to be scored, and to be prepared, by step
        self.waiting = True
        self.rollout_queue: deque[Job] = deque()
        self.reward_queue: deque[Job] = deque()
        threads = schedule.threads
        self.learners = [Actor("learner", threads["learner"]) for _ in range(schedule.learners)]
        self.driver = Actor("driver", 0)
        rollout = [Actor("rollout", threads["rollout"], self.rollout_queue) for _ in range(schedule.rollout_workers)]
        reward = [Actor("reward", threads["reward"], self.reward_queue) for _ in range(schedule.reward_workers)]
        self.machine = Machine([*rollout, *reward, *self.learners, self.driver], schedule.cores)
        self._launch(through=0)

    def until(self, updates: int) -> None:
        self.machine.run(lambda: self.updates >= updates)

    def _launch(self, through: int) -> None:
        """Queue the units of all steps up to `through` that are not out yet, with the weights of now."""
        for step in range(self.launched, through + 1):
            self.open[step] = 2 * self.schedule.count
            for minibatch in self.schedule.units:
                for number, size in enumerate(minibatch):
                    self._launch_unit(step, size, self.learners[number % len(self.learners)])
        self.launched = max(self.launched, through + 1)

    def _launch_unit(self, step: int, size: int, learner: Actor) -> None:
        c, version = self.costs, self.updates

        def seconds(worker: Actor) -> float:
            load = c.sync if worker.version < version else 0.0
            worker.version = version
            return load + size * (c.read + c.encode + c.sample)

        def sampled() -> None:
            self.reward_queue.append(_job(size * c.score, scored))
            if not self.schedule.in_turn:
                prepare()

        def scored() -> None:
            self._close(step)
            if self.schedule.in_turn:
                prepare()

        def prepare() -> None:
            learner.queue.append(_job(size * (c.encode_again + c.reference), lambda: self._close(step)))

        self.rollout_queue.append(Job(seconds, sampled))

    def _close(self, step: int) -> None:
        self.open[step] -= 1
        self._update_if_ready()

    def _update_if_ready(self) -> None:
        if self.waiting and self.open[self.updates] == 0:
            del self.open[self.updates]
            self.waiting = False
            self._launch(through=self.updates + self.schedule.max_staleness)
            self._pass(0)

    def _pass(self, number: int) -> None:
        """The learners' work on one minibatch, then the optimizer step that they take together."""
        c, units, count = self.costs, self.schedule.units, len(self.learners)
        if number == self.schedule.updates_per_rollout * len(units):
            published = lambda: self.driver.queue.append(_job(c.driver, self._next_step))  # noqa: E731
            self._together([c.publish] * count, published)
            return
        minibatch = units[number % len(units)]
        step = c.optimizer + (c.reduce if count > 1 else 0.0)
        gradients = [c.update * sum(minibatch[rank::count]) for rank in range(count)]
        self._together(gradients, lambda: self._together([step] * count, lambda: self._pass(number + 1)))

    def _together(self, seconds: list[float], done: Callable[[], None]) -> None:
        """A job for every learner, ahead of anything queued, and `done` when the last has ended. Who is early waits."""
        left = len(seconds)

        def ended(learner: Actor) -> None:
            nonlocal left
            left -= 1
            learner.held = True
            if left == 0:
                for other in self.learners:
                    other.held = False
                done()

        for learner, work in zip(self.learners, seconds, strict=True):
            learner.queue.appendleft(_job(work, partial(ended, learner)))

    def _next_step(self) -> None:
        self.updates += 1
        self.waiting = True
        self._launch(through=self.updates)
        self._update_if_ready()


def _job(seconds: float, done: Callable[[], None]) -> Job:
    return Job(lambda actor: seconds, done)
