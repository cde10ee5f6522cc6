"""Loading pauses the garbage collector, and only libraries are kept from it afterwards."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from launch.common.loading import collector_paused, loading


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def test_the_collector_pauses_and_then_ignores_what_was_loaded() -> None:
    frozen = gc.get_freeze_count()
    with loading():
        assert not gc.isenabled()
        loaded = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= frozen + len(loaded)
    later: list[object] = []
    assert any(it is later for it in gc.get_objects())
    assert not any(it is loaded[0] for it in gc.get_objects())


def test_a_failed_import_does_not_leave_it_paused() -> None:
    with pytest.raises(ImportError), loading():
        raise ImportError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    with loading():
        pass
    assert not gc.isenabled()


def test_what_is_built_while_it_pauses_can_be_collected_later() -> None:
    class Model:
        def __init__(self) -> None:
            self.own = self

    @collector_paused()
    def build() -> weakref.ref[Model]:
        assert not gc.isenabled()
        return weakref.ref(Model())

    model = build()
    assert gc.isenabled()
    gc.collect()
    assert model() is None
