"""Units of conditions and their path: read, sample, then score and, at the same time, prepare for learning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from data.actor import ReadInfo
from launch.cluster.learner_group import LearnerGroup
from launch.cluster.pool import Member, Pool, Task
from launch.rl.reports import HELDOUT_STEP
from stylevar.contracts import CallInfo, PolicyVersion, RewardDetail


@dataclass
class Unit:
    """Some conditions of a step. Fields that end in `_ref` are Ray references; the driver fetches none of a training step.

    read: the reader's method and its arguments. learner: the number of the learner that learns from the unit; None for
    held-out conditions, which get `group` samples each. attempt: how often the unit was started; results of earlier
    attempts are ignored.
    """

    step: int
    number: int
    read: tuple[str, Sequence[Any]]
    version: PolicyVersion
    learner: int | None = None
    group: int | None = None
    minibatch: int = 0
    keys: tuple[str, ...] = ()
    attempt: int = 0
    scored: bool = False
    prepared: bool = False
    batch_ref: Any = None
    work_ref: Any = None
    images_ref: Any = None
    scores_ref: Any = None

    def __str__(self) -> str:
        where = "held-out conditions" if self.step == HELDOUT_STEP else f"step {self.step}"
        return f"{where}, unit {self.number}"

    @property
    def done(self) -> bool:
        """Whether the unit is scored and, unless it is held out, prepared for learning."""
        return self.scored and (self.prepared or self.learner is None)

    def abandon(self) -> None:
        """Ignore the results of attempts so far."""
        self.attempt += 1


class UnitFlow:
    """Passes units from role to role."""

    def __init__(
        self,
        reader: Pool,
        rollout: Pool,
        reward: Pool,
        learners: LearnerGroup,
        sync: Callable[[Member, PolicyVersion], None],
        in_turn: bool = False,
        detail: RewardDetail = "none",
    ) -> None:
        """`sync` loads a version of the weights into a rollout worker before it samples.

        `in_turn`: prepare a unit after it is scored, not at the same time. On shared cores, the threads of both tasks wait
        for each other, and both took twice as long.
        `detail`: what the credit method needs to know about the rewards of training units, besides their values.
        """
        self._reader, self._rollout, self._reward, self._learners, self._sync = reader, rollout, reward, learners, sync
        self._in_turn, self._detail = in_turn, detail

    def start(self, unit: Unit) -> None:
        """Start a unit, or restart it: the same seeds and weights give the same trajectories."""
        unit.attempt += 1
        unit.scored = unit.prepared = False
        self._reader.submit(self._task("reading", unit, self._read, self._on_read))

    def _task(self, verb: str, unit: Unit, start: Callable[[Unit, Member], Any], then: Callable[[Unit, Any], None]) -> Task:
        attempt = unit.attempt
        return Task(
            order=(unit.step, unit.number),
            what=f"{verb} {unit}",
            start=lambda member: start(unit, member),
            done=lambda info: then(unit, info),
            lost_input=lambda: self.start(unit),
            live=lambda: unit.attempt == attempt,
        )

    def _read(self, unit: Unit, member: Member) -> Any:
        method, arguments = unit.read
        unit.batch_ref, info = getattr(member.actor, method).options(num_returns=2).remote(*arguments)
        return info

    def _on_read(self, unit: Unit, info: ReadInfo) -> None:
        unit.keys = info.keys
        self._rollout.submit(self._task("sampling", unit, self._sample, self._on_sampled))

    def _sample(self, unit: Unit, member: Member) -> Any:
        self._sync(member, unit.version)
        arguments = (unit.batch_ref, unit.step, unit.version, unit.group)
        unit.work_ref, unit.images_ref, info = member.actor.sample.options(num_returns=3).remote(*arguments)
        return info

    def _on_sampled(self, unit: Unit, _: CallInfo) -> None:
        self._reward.submit(self._task("scoring", unit, self._score, self._on_scored))
        if not self._in_turn:
            self._prepare(unit)

    def _prepare(self, unit: Unit) -> None:
        if unit.learner is None:
            return
        attempt, what = unit.attempt, f"preparing {unit}"

        def done() -> None:
            unit.prepared = unit.prepared or unit.attempt == attempt

        def lost_input() -> None:
            if unit.attempt == attempt:
                self.start(unit)

        self._learners.prepare(what, unit.learner, (unit.step, unit.number, unit.work_ref), done, lost_input)

    def _score(self, unit: Unit, member: Member) -> Any:
        detail = "none" if unit.learner is None else self._detail
        arguments = (unit.images_ref, unit.batch_ref, unit.step, detail)
        unit.scores_ref, info = member.actor.score.options(num_returns=2).remote(*arguments)
        return info

    def _on_scored(self, unit: Unit, _: CallInfo) -> None:
        unit.scored = True
        if self._in_turn:
            self._prepare(unit)
