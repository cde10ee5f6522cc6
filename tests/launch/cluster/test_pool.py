"""Pools of actors: order, deadlines, losses, and what ends a run.

The pool's clock stands still unless a test moves it, so that nothing here depends on how busy the machine is.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from patience import HANG
from ray.exceptions import ObjectLostError, ObjectStoreFullError, OutOfDiskError, RayTaskError

import launch.cluster.pool
from launch.cluster.pool import Calls, Pool, Task, fetch
from launch.common.ray_cluster import init_patiently
from launch.rl.worker import WorkerLost

CALL, START = 30.0, 300.0
"""Seconds of the pool's clock that a call and a start may take."""


class Clock:
    """The pool's `time`."""

    now = 0.0
    sleep = staticmethod(time.sleep)

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(launch.cluster.pool, "time", clock)
    return clock


@pytest.fixture(scope="module")
def actor_class():
    init_patiently(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)

    class Echo:  # defined here, so that it travels by value
        def setup(self, hold: str) -> str:
            while os.path.exists(hold):
                time.sleep(0.02)
            return "facts"

        def work(self, value: int, how: str = "") -> int:
            if how == "die":
                os._exit(1)
            if how == "hang":
                threading.Event().wait()
            if how == "bug":
                raise ZeroDivisionError("a bug")
            return value

        def refuse(self) -> None:
            raise ValueError("no")

    yield ray.remote(Echo).options(num_cpus=0)
    ray.shutdown()


def pool_of(actor_class: Any, count: int, hold: Path = Path("nowhere"), placed: Any = lambda _: True) -> tuple[Pool, Calls]:
    """A pool that is ready. Its actors cannot start while the file `hold` is there."""
    calls = Calls(CALL, START)
    names = [f"echo-{number}" for number in range(count)]
    create, setup = lambda _: actor_class.remote(), lambda actor: actor.setup.remote(str(hold))
    pool = Pool(names, create, setup, calls, 1, placed)
    pool.start()
    run(pool, calls, lambda: pool.ready)
    return pool, calls


def turn(pool: Pool, calls: Calls) -> None:
    pool.feed()
    calls.poll(0.1)


def run(pool: Pool, calls: Calls, done: Any) -> None:
    until = time.monotonic() + HANG
    while not done():
        assert time.monotonic() < until
        turn(pool, calls)


def task(number: int, found: list, how: list[str] | None = None, live: bool = True) -> Task:
    """Work that does what `how` says at the first try, and returns its number."""
    how = how or []

    def start(member: Any) -> Any:
        return member.actor.work.remote(number, how.pop() if how else "")

    return Task((0, number), f"task {number}", start, found.append, lambda: found.append("lost"), lambda: live)


def test_tasks_go_in_their_order_and_dead_ones_not_at_all(actor_class):
    pool, calls = pool_of(actor_class, 1)
    found: list = []
    for number in (3, 1, 2):
        pool.submit(task(number, found))
    pool.submit(task(0, found, live=False))
    run(pool, calls, lambda: len(found) == 3)
    assert found == [1, 2, 3]
    assert pool.facts == "facts"
    assert pool.members[0].calls == 4


def test_a_lost_actor_is_replaced_and_its_task_done(actor_class, caplog):
    pool, calls = pool_of(actor_class, 2)
    found: list = []
    pool.submit(task(1, found, ["die"]))
    pool.submit(task(2, found))
    run(pool, calls, lambda: len(found) == 2 and pool.ready)
    assert sorted(found) == [1, 2]
    assert pool.restarts == 1
    assert "task 1 is done again with the same seeds" in caplog.text


def test_an_actor_that_hangs_is_found_by_its_deadline(actor_class, clock, caplog):
    pool, calls = pool_of(actor_class, 1)
    found: list = []
    pool.submit(task(7, found, ["hang"]))
    run(pool, calls, lambda: pool.members[0].busy)
    clock.now += CALL - 1
    turn(pool, calls)
    assert pool.restarts == 0
    clock.now += 2
    run(pool, calls, lambda: found == [7])
    assert "task 7 on echo-0 took over --call-timeout 30 s" in caplog.text


@pytest.fixture
def starting(actor_class, tmp_path):
    """A pool that has lost its only actor, and the file that keeps the replacement from starting."""
    hold, room = tmp_path / "hold", [True]
    pool, calls = pool_of(actor_class, 1, hold, lambda _: room[0])
    hold.touch()
    found: list = []
    pool.submit(task(1, found, ["die"]))
    run(pool, calls, lambda: pool.restarts == 1)
    return pool, calls, hold, room, found


def test_an_actor_that_is_still_starting_is_waited_for(starting, clock):
    pool, calls, hold, _, found = starting
    clock.now += CALL + 1
    for _ in range(3):
        turn(pool, calls)
    hold.unlink()
    run(pool, calls, lambda: found == [1])
    assert pool.restarts == 1


def test_a_start_has_a_limit_of_its_own(starting, clock):
    pool, calls, *_ = starting
    turn(pool, calls)
    clock.now += START + 1
    with pytest.raises(WorkerLost, match="setup on echo-0 took over --start-timeout 300 s"):
        run(pool, calls, lambda: False)


def test_the_clock_of_a_start_runs_only_where_there_is_room(starting, clock):
    pool, calls, hold, room, found = starting
    room[0] = False
    turn(pool, calls)
    clock.now += START - 1
    turn(pool, calls)
    room[0] = True
    clock.now += START - 1
    turn(pool, calls)
    hold.unlink()
    run(pool, calls, lambda: found == [1])
    assert pool.restarts == 1


def test_a_pool_without_room_ends_the_run(starting, clock):
    pool, calls, _, room, _ = starting
    room[0] = False
    turn(pool, calls)
    clock.now += START + 1
    with pytest.raises(WorkerLost, match="no room for any of echo-0 for --start-timeout 300 s"):
        turn(pool, calls)


def test_an_actor_that_is_lost_again_and_again_ends_the_run(actor_class):
    pool, calls = pool_of(actor_class, 1)
    pool.submit(task(1, [], ["die"] * 5))
    with pytest.raises(WorkerLost, match="echo-0 was lost more than --max-restarts 1 times"):
        run(pool, calls, lambda: False)


def test_bugs_are_raised_as_they_are(actor_class):
    pool, calls = pool_of(actor_class, 1)
    pool.submit(task(1, [], ["bug"]))
    with pytest.raises(RayTaskError, match="a bug") as raised:
        run(pool, calls, lambda: False)
    assert isinstance(raised.value, ZeroDivisionError)


@pytest.mark.parametrize("full", [OutOfDiskError, ObjectStoreFullError])
def test_a_full_object_store_ends_the_run_with_a_remedy(actor_class, full):
    @ray.remote(num_cpus=0)
    def store() -> None:
        raise full("no space")

    for reference in (store.remote(), [store.remote()]):
        with pytest.raises(WorkerLost, match="object store is full.*--object-store-memory"):
            fetch(reference)


def test_lost_input_is_told_to_whoever_made_it(actor_class):
    pool, _ = pool_of(actor_class, 1)
    found: list = []
    lost = task(1, found)
    pool._running["echo-0"] = lost
    pool.members[0].busy = True
    pool.failed(pool.members[0], lost, ObjectLostError("00" * 28, "somewhere", "call site"))
    assert found == ["lost"]
    assert not pool.members[0].busy
    assert pool.restarts == 0
