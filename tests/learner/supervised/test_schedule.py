"""Learning rates at known points of a run."""

from __future__ import annotations

import pytest

from learner.supervised.schedule import ScheduleConfig
from stylevar.errors import UserError


def rates(**settings) -> list[float]:
    config = ScheduleConfig(**{"warmup": 10, **settings})
    return [config.learning_rate(step, 100, 2.0) for step in range(100)]


@pytest.mark.parametrize("schedule", ["step", "cosine", "linear"])
def test_warm_up_comes_first(schedule):
    assert rates(schedule=schedule)[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert ScheduleConfig(schedule=schedule, warmup=0).learning_rate(0, 1, 2.0) == 2.0


def test_the_model_cards_steps():
    # Ten epochs of 10 steps: 5e-4 in epochs 1-6, 1e-4 in 7-10.
    card = [ScheduleConfig(warmup=0).learning_rate(step, 100, 5e-4) for step in range(100)]
    assert card == pytest.approx([5e-4] * 60 + [1e-4] * 40)


def test_cosine_and_linear_end_at_their_share():
    cosine, linear = rates(schedule="cosine", lr_end=0.1), rates(schedule="linear", lr_end=0.1)
    for found in (cosine, linear):
        assert found[10] == 2.0
        assert found[55] == pytest.approx(1.1)
        assert found[10:] == sorted(found[10:], reverse=True)
        assert found[-1] == pytest.approx(0.2, abs=0.025)
    assert cosine[20] > linear[20]


@pytest.mark.parametrize("setting", [{"warmup": -1}, {"lr_drop_at": 1.5}, {"lr_end": -0.1}, {"lr_drop": 2}])
def test_bad_settings(setting):
    name = f"--{next(iter(setting)).replace('_', '-')}"
    with pytest.raises(UserError, match=name):
        ScheduleConfig(**setting)
