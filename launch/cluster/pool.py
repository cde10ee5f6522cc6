"""Calls to actors with deadlines, and pools of actors that take tasks. Lost actors are replaced."""

from __future__ import annotations

import functools
import heapq
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ObjectLostError, ObjectStoreFullError, OutOfDiskError, RayActorError, RayTaskError

from launch.common.ray_cluster import why_lost
from launch.rl.worker import WorkerLost
from stylevar.errors import UserError

logger = logging.getLogger(__name__)

POLL = 0.5
"""Seconds between checks of deadlines and signals when nothing else happens."""


class CallTimeout(RuntimeError):
    """A worker did not answer in time."""


LOST = (RayActorError, CallTimeout)
"""Errors that mean that the worker is gone or hangs."""


def fetch(references: Any) -> Any:
    """`ray.get` of one or more references. Raises WorkerLost if the object store of this node or the worker's is full."""
    try:
        return ray.get(references)
    except (ObjectStoreFullError, OutOfDiskError) as error:
        raise WorkerLost(
            "Ray's object store is full, and so is the disk that it spills to: free space there (Ray's warnings name the "
            "path), or give it more memory (`ray start --object-store-memory`)"
        ) from error


@dataclass
class Member:
    """One actor of a role. In `held`, the pool's user records what the actor holds."""

    name: str
    actor: Any = None
    ready: bool = False
    busy: bool = False
    held: Any = None
    restarts: int = 0
    worked: float = 0.0
    calls: int = 0
    progress: float = 0.0


@dataclass
class Call:
    """A call in progress; `done` gets its small result, `failed` its error.

    starting: the worker is still starting. placed: whether it has a place on the cluster; until then it cannot start, and
    the time does not count towards its deadline.
    """

    what: str
    member: Member
    done: Callable[[Any], None]
    failed: Callable[[BaseException], None]
    since: float
    starting: bool
    placed: Callable[[], bool]


class Calls:
    """All calls in progress. `poll` waits for some of them and handles their results."""

    def __init__(self, timeout: float, start_timeout: float) -> None:
        """`timeout`: seconds that a call may take. `start_timeout`: the same for a worker's first call, with its start."""
        self.timeout, self.start_timeout = timeout, start_timeout
        self._running: dict[Any, Call] = {}

    def __len__(self) -> int:
        return len(self._running)

    def add(
        self,
        what: str,
        member: Member,
        reference: Any,
        done: Callable[[Any], None],
        failed: Callable[[BaseException], None],
        placed: Callable[[], bool] = lambda: True,
    ) -> None:
        """Watch `reference`, the small result of a call. Errors name the call by `what` and its member.

        Until the member is ready, the call may take as long as a start, counted only while `placed`.
        """
        self._running[reference] = Call(what, member, done, failed, time.monotonic(), not member.ready, placed)

    def poll(self, wait: float = POLL) -> None:
        """Handle calls that have ended or hang. Waits up to `wait` seconds for the first one to end.

        Raises errors that a call's `failed` does not handle, every UserError unchanged, and WorkerLost (see `fetch`).
        """
        if not self._running:
            time.sleep(wait)
            return
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=wait)
        if ready:
            ready, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        for reference in ready:
            call = self._running.pop(reference, None)
            if call is not None:
                self._end(call, reference)
        self._check_deadlines()

    def forget(self, member: Member) -> list[Call]:
        """Stop watching the calls of a member that is gone. Returns these calls."""
        gone = {reference: call for reference, call in self._running.items() if call.member is member}
        for reference in gone:
            del self._running[reference]
        return list(gone.values())

    def _end(self, call: Call, reference: Any) -> None:
        try:
            value = fetch(reference)
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            call.failed(error)
            return
        except (RayActorError, ObjectLostError) as error:
            call.failed(error)
            return
        call.member.progress = time.monotonic()
        call.member.calls += 1
        call.member.worked += getattr(value, "seconds", 0.0)
        call.done(value)

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for reference, call in list(self._running.items()):
            if call.starting and not call.placed():
                call.since = now
            flag, limit = ("start", self.start_timeout) if call.starting else ("call", self.timeout)
            # A call may have waited for earlier calls of its actor, so count from the actor's last sign of life.
            if reference in self._running and now - max(call.since, call.member.progress) > limit:
                del self._running[reference]
                call.failed(CallTimeout(f"{call.what} on {call.member.name} took over --{flag}-timeout {limit:g} s"))


@dataclass(order=True)
class Task:
    """Work for any member of a pool; tasks with a smaller `order` go first.

    start: makes the call on a member and returns the reference to its small result. done: receives that result.
    lost_input: called if the arguments were lost with another worker. live: whether the result is still needed.
    """

    order: tuple[int, ...]
    what: str = field(compare=False)
    start: Callable[[Member], Any] = field(compare=False)
    done: Callable[[Any], None] = field(compare=False)
    lost_input: Callable[[], None] = field(compare=False)
    live: Callable[[], bool] = field(compare=False, default=lambda: True)


class Pool:
    """The actors of a role. Idle actors take the next task. A lost actor is replaced, and its task is queued again."""

    def __init__(
        self,
        names: Sequence[str],
        create: Callable[[int], Any],
        setup: Callable[[Any], Any],
        calls: Calls,
        max_restarts: int,
        placed: Callable[[int], bool] = lambda _: True,
    ) -> None:
        """`create` starts actor number i; `setup` makes the first call to an actor and returns its reference.

        `placed` tells whether the cluster has a place for actor number i.
        """
        self.members = [Member(name) for name in names]
        self.facts: Any = None
        self.queue_depths: list[int] = []
        self._create, self._setup, self._placed = create, setup, placed
        self._calls, self._max_restarts = calls, max_restarts
        self._queue: list[tuple[Task, int]] = []
        self._running: dict[str, Task] = {}
        self._number = itertools.count()
        self._no_room_since: float | None = None

    def start(self) -> None:
        """Create and set up all actors in parallel. `ready` tells when they are all set up."""
        for number in range(len(self.members)):
            self._launch(number, first=True)

    @property
    def ready(self) -> bool:
        """Whether all members can work."""
        return all(member.ready for member in self.members)

    @property
    def restarts(self) -> int:
        """How many actors were replaced."""
        return sum(member.restarts for member in self.members)

    def submit(self, task: Task) -> None:
        """Queue a task."""
        heapq.heappush(self._queue, (task, next(self._number)))

    def feed(self) -> None:
        """Give tasks to idle members."""
        while self._queue and not self._queue[0][0].live():
            heapq.heappop(self._queue)
        for member in self.members:
            if self._queue and member.ready and not member.busy:
                self.queue_depths.append(len(self._queue))
                self._begin(member, heapq.heappop(self._queue)[0])
        self._check_room()

    def renew(self) -> None:
        """Drop all tasks and set up all actors again. Actors that are alive are kept."""
        self._queue, self._running = [], {}
        for number, member in enumerate(self.members):
            self._calls.forget(member)
            back = member.ready
            member.ready, member.busy, member.held = False, False, None
            self._watch_setup(number, first=back)

    def _begin(self, member: Member, task: Task) -> None:
        if not task.live():
            return
        member.busy = True
        self._running[member.name] = task

        def done(value: Any) -> None:
            member.busy = False
            del self._running[member.name]
            if task.live():
                task.done(value)

        def failed(error: BaseException) -> None:
            self.lost(member, error) if isinstance(error, LOST) else self.failed(member, task, error)

        self._calls.add(task.what, member, task.start(member), done, failed)

    def failed(self, member: Member, task: Task, error: BaseException) -> None:
        """A task ended with an error that its worker survived."""
        if not isinstance(error, ObjectLostError):
            raise error
        member.busy = False
        self._running.pop(member.name, None)
        logger.warning("%s: its input was lost with another worker, so it is done again", task.what)
        if task.live():
            task.lost_input()

    def lost(self, member: Member, error: BaseException) -> None:
        """Replace a member and put its task back into the queue."""
        task = self._running.pop(member.name, None)
        self._calls.forget(member)
        number = self.members.index(member)
        reason = why_lost(error)
        if member.restarts >= self._max_restarts:
            times = f"--max-restarts {self._max_restarts} times"
            raise WorkerLost(f"{member.name} was lost more than {times}; the last time: {reason}")
        again = "" if task is None else f", {task.what} is done again with the same seeds"
        logger.warning("%s was lost (%s): it is replaced%s", member.name, reason, again)
        member.restarts += 1
        self._replace(number, task)

    def move(self, number: int) -> None:
        """Replace a member because its place has changed."""
        member = self.members[number]
        self._calls.forget(member)
        self._replace(number, self._running.pop(member.name, None))

    def _replace(self, number: int, task: Task | None) -> None:
        member = self.members[number]
        ray.kill(member.actor)
        member.ready, member.busy, member.held = False, False, None
        self._launch(number, first=False)
        if task is not None and task.live():
            self.submit(task)

    def _launch(self, number: int, first: bool) -> None:
        self.members[number].actor = self._create(number)
        self._watch_setup(number, first)

    def _watch_setup(self, number: int, first: bool) -> None:
        member = self.members[number]

        def done(facts: Any) -> None:
            self.facts, member.ready = facts, True
            if not first:
                logger.warning("%s is back", member.name)

        def failed(error: BaseException) -> None:
            if not isinstance(error, LOST):
                raise error
            self.lost(member, error)

        # A replacement may have to wait for a node to return, while the others go on.
        placed = functools.partial(self._placed, number)
        self._calls.add("setup", member, self._setup(member.actor), done, failed, placed)

    def _check_room(self) -> None:
        """Raise WorkerLost if no actor is left and none has found room for too long. An actor with a place is starting."""
        if not self._queue or any(member.ready for member in self.members) or self._any_placed():
            self._no_room_since = None
            return
        now = time.monotonic()
        if self._no_room_since is None:
            self._no_room_since = now
        if now - self._no_room_since > self._calls.start_timeout:
            names = ", ".join(member.name for member in self.members)
            limit = f"--start-timeout {self._calls.start_timeout:g} s"
            raise WorkerLost(f"the cluster has had no room for any of {names} for {limit}: start more nodes")

    def _any_placed(self) -> bool:
        return any(self._placed(number) for number in range(len(self.members)))
