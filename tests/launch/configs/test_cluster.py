"""What a plan asks for, whether the nodes can hold it, and how a step is cut into units."""

from __future__ import annotations

import pytest

from launch.configs.cluster import ClusterConfig, bundles, check_fits, crowded, split_units
from stylevar.errors import UserError


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("unit", [0, 1, 3])
def test_units_cover_every_minibatch_in_order(workers, unit):
    cuts = split_units(12, 3, ClusterConfig(rollout_workers=workers, unit=unit), at_once=2)
    assert [list(range(part.start, part.stop)) for part in cuts[1]] == [
        list(range(4, 8))[at : at + size] for size in [cuts[1][0].stop - 4] for at in range(0, 4, size)
    ]
    assert [i for some in cuts for part in some for i in range(part.start, part.stop)] == list(range(12))
    assert all(part.stop - part.start <= (unit or 2) for some in cuts for part in some)


def test_there_is_work_for_all_rollout_workers_twice_if_there_can_be():
    assert len(split_units(16, 1, ClusterConfig(rollout_workers=4), at_once=8)[0]) == 8
    assert len(split_units(16, 1, ClusterConfig(rollout_workers=1), at_once=8)[0]) == 2
    assert len(split_units(4, 1, ClusterConfig(rollout_workers=64), at_once=8)[0]) == 4


def test_more_threads_than_cpus_are_a_crowd():
    config = ClusterConfig(rollout_workers=2)
    assert not crowded(config, {"rollout": 1, "reward": 1, "learner": 2}, 5)
    assert crowded(config, {"rollout": 2, "reward": 1, "learner": 1}, 5)


def test_equal_shares_always_fit_one_node():
    config = ClusterConfig(rollout_workers=3, reward_workers=2, learners=2)
    asked = bundles(config, {"CPU": 16.0}, gpu=False)
    assert asked["rollout"] == {"CPU": 2.28}
    check_fits(config, asked, [{"CPU": 16.0, "memory": 1e9}])


def test_fractions_share_gpus():
    config = ClusterConfig(rollout_workers=2, rollout_gpus=0.7, reward_gpus=0.3, learner_gpus=1.0)
    asked = bundles(config, {"CPU": 8.0, "GPU": 3.0}, gpu=True)
    check_fits(config, asked, [{"CPU": 4.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}])
    # 0.7 + 0.7 + 0.3 + 1.0 is less than 3, but no two nodes of one and a half GPUs can hold it.
    with pytest.raises(UserError, match="no room for all rollout workers"):
        check_fits(config, asked, [{"CPU": 4.0, "GPU": 1.5}, {"CPU": 4.0, "GPU": 0.5}, {"CPU": 4.0, "GPU": 0.6}])


def test_a_plan_that_does_not_fit_says_what_is_asked_what_is_there_and_what_to_change():
    config = ClusterConfig(rollout_workers=8, rollout_cpus=4)
    with pytest.raises(UserError) as refused:
        check_fits(config, bundles(config, {"CPU": 16.0}, gpu=False), [{"CPU": 8.0}, {"CPU": 8.0}])
    text = str(refused.value)
    for part in ("8 rollout x 4 CPU", "the nodes have 8 CPU; 8 CPU", "--rollout-workers", "--rollout-cpus"):
        assert part in text
    gpus = ClusterConfig(learners=2)
    with pytest.raises(UserError, match=r"2 learner x .* 1 GPU.*--learner-gpus|--learners"):
        check_fits(gpus, bundles(gpus, {"CPU": 16.0, "GPU": 2.0}, gpu=True), [{"CPU": 16.0, "GPU": 2.0}])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learners": 0}, "--learners 0: must be at least 1"),
        ({"reward_gpus": 1.5}, "--reward-gpus 1.5"),
        ({"rollout_cpus": -1}, "--rollout-cpus -1"),
        ({"unit": -1}, "--unit -1"),
        ({"call_timeout": 0}, "--call-timeout 0"),
        ({"start_timeout": 0}, "--start-timeout 0"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(UserError, match=message):
        ClusterConfig(**fields)
