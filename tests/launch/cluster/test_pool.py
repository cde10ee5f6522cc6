"""Pools of actors: order, deadlines, losses, and what ends a run."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import ray
from ray.exceptions import ObjectLostError, RayTaskError

from launch.cluster.pool import Calls, CallTimeout, Pool, Task
from stylevar.errors import UserError


@pytest.fixture(scope="module")
def actor_class():
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)

    class Echo:  # defined here, so that it travels by value
        def setup(self) -> str:
            return "facts"

        def work(self, value: int, how: str = "") -> int:
            if how == "die":
                os._exit(1)
            if how == "hang":
                time.sleep(60)
            if how == "bug":
                raise ZeroDivisionError("a bug")
            return value

        def refuse(self) -> None:
            raise ValueError("no")

    yield ray.remote(Echo).options(num_cpus=0)
    ray.shutdown()


def pool_of(actor_class: Any, count: int, timeout: float = 30.0, max_restarts: int = 1) -> tuple[Pool, Calls]:
    calls = Calls(timeout)
    names = [f"echo-{number}" for number in range(count)]
    pool = Pool(names, lambda _: actor_class.remote(), lambda actor: actor.setup.remote(), calls, max_restarts)
    pool.start()
    run(pool, calls, lambda: pool.ready)
    return pool, calls


def run(pool: Pool, calls: Calls, done: Any) -> None:
    until = time.monotonic() + 60
    while not done():
        assert time.monotonic() < until
        pool.feed()
        calls.poll(0.1)


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


def test_an_actor_that_hangs_is_found_by_its_deadline(actor_class, caplog):
    pool, calls = pool_of(actor_class, 1, timeout=3.0)
    found: list = []
    pool.submit(task(7, found, ["hang"]))
    run(pool, calls, lambda: found == [7])
    assert "task 7 on echo-0 took over --call-timeout 3 s" in caplog.text
    assert isinstance(CallTimeout("x"), RuntimeError)


def test_an_actor_that_is_lost_again_and_again_ends_the_run(actor_class):
    pool, calls = pool_of(actor_class, 1)
    pool.submit(task(1, [], ["die"] * 5))
    with pytest.raises(UserError, match="echo-0 was lost more than --max-restarts 1 times"):
        run(pool, calls, lambda: False)


def test_bugs_are_raised_as_they_are(actor_class):
    pool, calls = pool_of(actor_class, 1)
    pool.submit(task(1, [], ["bug"]))
    with pytest.raises(RayTaskError, match="a bug") as raised:
        run(pool, calls, lambda: False)
    assert isinstance(raised.value, ZeroDivisionError)


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
