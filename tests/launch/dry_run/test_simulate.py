"""The simulated schedule against closed forms: who waits for whom, what overlaps, and what limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launch.dry_run.simulate import Costs, Prediction, Schedule, serial, simulate

COSTS = Costs(
    read=0.25,
    encode=0.5,
    encode_again=0.25,
    sample=4.0,
    score=1.0,
    reference=2.0,
    update=3.0,
    optimizer=0.5,
    reduce=0.0,
    publish=0.0,
    sync=1.0,
    driver=0.125,
)
ROLLOUT = COSTS.read + COSTS.encode + COSTS.sample
PREPARE = COSTS.encode_again + COSTS.reference


def step_seconds(schedule: Schedule, **changes: float) -> float:
    return simulate(schedule, replace(COSTS, **changes)).step_seconds


def test_one_of_each_works_in_turn_on_a_single_unit():
    """Scoring hides behind preparing, nothing else overlaps."""
    expected = COSTS.sync + ROLLOUT + PREPARE + COSTS.update + COSTS.optimizer + COSTS.driver
    assert step_seconds(Schedule(((1,),))) == pytest.approx(expected)
    assert step_seconds(Schedule(((1,),)), score=7.0) == pytest.approx(expected - PREPARE + 7.0)


def test_in_turn_preparing_waits_for_the_scores():
    expected = COSTS.sync + ROLLOUT + COSTS.score + PREPARE + COSTS.update + COSTS.optimizer + COSTS.driver
    assert step_seconds(Schedule(((1,),), in_turn=True)) == pytest.approx(expected)


def test_work_grows_with_the_conditions_of_a_unit():
    expected = COSTS.sync + 3 * (ROLLOUT + PREPARE + COSTS.update) + COSTS.optimizer + COSTS.driver
    assert step_seconds(Schedule(((3,),))) == pytest.approx(expected)


def test_units_overlap_sampling_with_preparing():
    """Four units: three of the four preparations happen while later units are sampled."""
    expected = COSTS.sync + 4 * ROLLOUT + PREPARE + 4 * COSTS.update + COSTS.optimizer + COSTS.driver
    assert step_seconds(Schedule(((1, 1, 1, 1),))) == pytest.approx(expected)


def test_units_go_round_to_the_workers():
    two = step_seconds(Schedule(((1, 1, 1, 1),), rollout_workers=2), sync=0.0)
    # Two rounds; the learner prepares the first one's pair during the second (and, here, a little longer).
    prepared = ROLLOUT + max(ROLLOUT, 2 * PREPARE) + 2 * PREPARE
    assert two == pytest.approx(prepared + 4 * COSTS.update + COSTS.optimizer + COSTS.driver)
    uneven = step_seconds(
        Schedule(((1, 1, 1),), rollout_workers=2), sync=0.0, reference=0.0, encode=0.0, encode_again=0.0, score=0.0
    )
    assert uneven == pytest.approx(2 * (ROLLOUT - COSTS.encode) + 3 * COSTS.update + COSTS.optimizer + COSTS.driver)


def test_staleness_one_hides_the_shorter_of_sampling_and_updating():
    """From ready to ready: the next step is sampled and prepared while the learner updates."""
    schedule = Schedule(((1,),), max_staleness=1)
    learner = COSTS.update + COSTS.optimizer
    rollout = COSTS.sync + ROLLOUT
    free = {"reference": 0.0, "score": 0.0, "driver": 0.0}
    assert step_seconds(schedule, **free) == pytest.approx(max(rollout, learner) + COSTS.encode_again)
    busy = step_seconds(schedule, update=50.0, **free)
    assert busy == pytest.approx(max(rollout, 50.5) + COSTS.encode_again)
    assert step_seconds(schedule) < step_seconds(replace(schedule, max_staleness=0))


def test_staleness_two_keeps_the_workers_sampling_through_the_preparation():
    """What bounds the step then is one role's own work."""
    costs = {"sample": 20.0, "sync": 0.0, "score": 0.0}
    rollout = COSTS.read + COSTS.encode + 20.0
    assert step_seconds(Schedule(((1,),), max_staleness=1), **costs) == pytest.approx(rollout + PREPARE)
    assert step_seconds(Schedule(((1,),), max_staleness=2), **costs) == pytest.approx(rollout)


def test_adapters_are_loaded_once_per_version_by_each_worker():
    at_zero = [step_seconds(Schedule(((1,) * 4,), rollout_workers=2), sync=sync) for sync in (0.0, 5.0)]
    assert at_zero[1] - at_zero[0] == pytest.approx(5.0)  # side by side, and not before the second unit
    loads = [step_seconds(Schedule(((1, 1),), max_staleness=1), sync=sync) for sync in (50.0, 60.0)]
    assert loads[1] - loads[0] == pytest.approx(10.0)


def test_learners_share_the_updates_and_wait_for_the_slowest():
    free = {
        "sync": 0.0,
        "reference": 0.0,
        "encode": 0.0,
        "encode_again": 0.0,
        "score": 0.0,
        "sample": 0.0,
        "read": 0.0,
        "driver": 0.0,
    }
    assert step_seconds(Schedule(((1,) * 4,), learners=2), **free) == pytest.approx(2 * COSTS.update + COSTS.optimizer)
    three = step_seconds(Schedule(((1,) * 4,), learners=3), **free, reduce=0.25)
    assert three == pytest.approx(2 * COSTS.update + COSTS.optimizer + 0.25)
    assert step_seconds(Schedule(((1,) * 4,)), **free, reduce=9.0) == pytest.approx(4 * COSTS.update + COSTS.optimizer)
    minibatches = Schedule(((1, 1), (1, 1)), updates_per_rollout=3)
    assert step_seconds(minibatches, **free) == pytest.approx(3 * (4 * COSTS.update + 2 * COSTS.optimizer))
    published = step_seconds(minibatches, **free, publish=0.75)
    assert published == pytest.approx(3 * (4 * COSTS.update + 2 * COSTS.optimizer) + 0.75)


def test_more_rollout_workers_help_until_the_learner_is_the_bottleneck():
    costs = replace(COSTS, sample=12.0)
    predictions = [simulate(Schedule(((1,) * 16,), rollout_workers=n, max_staleness=1), costs) for n in (1, 2, 4, 8, 16)]
    seconds = [p.step_seconds for p in predictions]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] / seconds[1] > 1.7
    assert seconds[3] / seconds[4] < 1.05
    assert predictions[0].busiest == "rollout"
    assert predictions[0].utilisation["rollout"] > 0.9
    assert predictions[-1].busiest == "learner"
    floor = 16 * (PREPARE + COSTS.update) + COSTS.optimizer
    assert floor <= seconds[-1] < 1.1 * floor
    assert predictions[-1].utilisation["learner"] == pytest.approx(floor / seconds[-1])


def test_threads_beyond_the_cores_slow_all_in_proportion():
    free = {"score": 0.0, "sync": 0.0, "encode": 0.0, "encode_again": 0.0, "driver": 0.0, "reference": 0.0}
    pair = Schedule(((1, 1),), rollout_workers=2)
    rest = 2 * COSTS.update + COSTS.optimizer
    alone = COSTS.read + COSTS.sample
    assert step_seconds(pair, **free) == pytest.approx(alone + rest)
    assert step_seconds(replace(pair, cores=2), **free) == pytest.approx(alone + rest)
    shared = simulate(replace(pair, cores=1), replace(COSTS, **free))
    assert shared.step_seconds == pytest.approx(2 * alone + rest)
    assert shared.cores == pytest.approx(1.0)
    wide = replace(pair, cores=2, threads={"rollout": 2, "reward": 1, "learner": 1})
    assert step_seconds(wide, **free) == pytest.approx(2 * alone + rest)


def test_the_rest_of_a_job_speeds_up_when_another_ends():
    """Rollouts of 1 and 3 s on one core: both at half speed for 2 s, then 2 s alone."""
    free = dict.fromkeys(
        ("read", "encode", "encode_again", "score", "reference", "optimizer", "sync", "driver", "update"), 0.0
    )
    schedule = Schedule(((1, 3),), rollout_workers=2, cores=1)
    prediction = simulate(schedule, replace(COSTS, **free, sample=1.0))
    assert prediction.step_seconds == pytest.approx(4.0)
    assert prediction.utilisation["rollout"] == pytest.approx((2.0 + 4.0) / (2 * 4.0))


def test_colocated_is_the_sum_and_encodes_once():
    schedule = Schedule(((2, 2), (2, 2)), updates_per_rollout=2)
    prediction: Prediction = serial(schedule, COSTS)
    learner = 8 * (COSTS.reference + 2 * COSTS.update) + 4 * COSTS.optimizer
    total = 8 * (ROLLOUT + COSTS.score) + learner + COSTS.driver
    assert prediction.step_seconds == pytest.approx(total)
    assert prediction.utilisation["learner"] == pytest.approx(learner / total)
