"""Learning rates over a run."""

from __future__ import annotations

import pytest

from learner.schedule import rate


def test_a_constant_rate_is_the_peak_after_the_warm_up():
    assert [rate("constant", step, 10, warmup=2) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]
    assert rate("constant", 0, 10) == 1.0


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_others_fall_to_their_end_and_stay_there(schedule):
    rates = [rate(schedule, step, 41, end=0.1) for step in range(50)]
    assert rates[0] == 1.0
    assert rates == sorted(rates, reverse=True)
    assert rates[40] == pytest.approx(0.1, abs=0.03)
    assert rates[41] == rates[49] == pytest.approx(0.1)


def test_half_way_both_are_half_way():
    for schedule in ("cosine", "linear"):
        assert rate(schedule, 20, 40, end=0.2) == pytest.approx(0.6)
