from __future__ import annotations

import json
import random

import pytest

from learner.grpo.merging import MergeAction, MergeConfig, MergeController
from stylevar.errors import UserError

# ema_beta=0 makes the average follow the rewards, so that the scenarios can be read off their numbers.
FAST = {
    "ema_beta": 0.0,
    "baseline_steps": 1,
    "peak_min_steps": 10,
    "patience": 3,
    "emergency_min_steps": 5,
}


def controller(policy: str = "guarded", **fields) -> MergeController:
    return MergeController(MergeConfig(merge_policy=policy, **{**FAST, **fields}))


def run(target: MergeController, rewards, raw_kl=0.0, start: int = 0) -> dict[int, list[MergeAction]]:
    """{step: actions} of the steps that had any."""
    done = {step: target.update(step, reward, raw_kl) for step, reward in enumerate(rewards, start)}
    return {step: actions for step, actions in done.items() if actions}


@pytest.mark.parametrize("policy", ["guarded", "paper"])
def test_published_numbers_are_the_defaults(policy):
    config = MergeConfig(merge_policy=policy)
    numbers = (config.ema_beta, config.peak_min_steps, config.min_gain, config.patience)
    assert numbers == (0.99, 300, 0.05, 50)
    assert (config.emergency_kl, config.emergency_min_steps) == (2.0, 50)


@pytest.mark.parametrize("policy", ["guarded", "paper"])
def test_peak_merge_waits_for_steps_gain_and_patience(policy):
    # Peak of -0.9 at step 4; patience ends at step 7, but 10 steps are complete only after step 9.
    actions = run(controller(policy), [-1.0, -1.1, -1.2, -0.95, -0.9] + [-1.0] * 6)
    merges = {step: a[-1] for step, a in actions.items() if a[-1].merges}
    assert merges == {9: MergeAction.PEAK_MERGE}
    # Patience decides if the peak is late.
    late = run(controller(policy), [-1.0] * 9 + [-0.9] + [-1.0] * 4)
    assert [step for step, a in late.items() if a[-1].merges] == [12]


@pytest.mark.parametrize("policy", ["guarded", "paper"])
def test_no_merge_below_the_gain(policy):
    assert not any(a[-1].merges for a in run(controller(policy), [-1.0, -0.96] + [-1.0] * 30).values())


def test_snapshot_on_every_new_peak():
    assert sorted(run(controller(), [-1.0, -0.9, -0.95, -0.9, -0.8])) == [1, 4]
    assert sorted(run(controller("paper"), [-1.0, -0.9, -0.95, -0.9, -0.8])) == [0, 1, 4]


def test_average_starts_at_the_first_reward_under_the_published_rule():
    target = MergeController(MergeConfig(merge_policy="paper"))
    run(target, [-1.0, 0.0])
    assert target.metrics()["reward/ema"] == pytest.approx(-0.99)
    assert target.metrics()["merge/baseline"] == -1.0


def test_guarded_average_starts_as_a_mean_and_ends_as_an_ema():
    target = MergeController(MergeConfig(baseline_steps=4))
    run(target, [1.0, 2.0, 3.0])
    assert "merge/baseline" not in target.metrics()
    run(target, [6.0], start=3)
    assert target.metrics()["merge/baseline"] == pytest.approx(3.0)
    run(target, [3.0] * 200, start=4)
    before = target.metrics()["reward/ema"]
    run(target, [before + 1.0], start=204)
    assert target.metrics()["reward/ema"] == pytest.approx(before + 0.01)


def test_baseline_becomes_the_peak_and_the_average_returns_with_the_weights():
    target = controller()
    run(target, [-1.0, -0.8] + [-0.9] * 8)
    metrics = target.metrics()
    assert metrics["merge/count"] == 1
    assert metrics["merge/steps_since"] == 0
    assert metrics["merge/baseline"] == metrics["merge/peak"] == metrics["reward/ema"] == -0.8
    # The next merge has to beat the new baseline, not the first one.
    assert not run(target, [-0.85] * 20, start=10)


def test_emergency_with_a_better_snapshot_merges():
    for policy in ("guarded", "paper"):
        target = controller(policy)
        run(target, [-1.0, -0.98, -1.2])
        assert run(target, [-1.3] * 2, raw_kl=2.1, start=3) == {4: [MergeAction.EMERGENCY_MERGE]}
        assert target.metrics()["merge/baseline"] == -0.98


def test_emergency_while_the_reward_falls():
    falling = [-1.0 - 0.1 * step for step in range(25)]
    published = controller("paper")
    merges = [s for s, a in run(published, falling, raw_kl=3.0).items() if a[-1] is MergeAction.EMERGENCY_MERGE]
    assert merges == [4, 9, 14, 19, 24]
    assert published.metrics()["merge/baseline"] < -2.5  # each merge made a worse policy the reference
    guarded = controller()
    actions = run(guarded, falling, raw_kl=3.0)
    assert actions == {step: [MergeAction.ROLLBACK] for step in (4, 9, 14, 19, 24)}
    metrics = guarded.metrics()
    assert metrics["merge/baseline"] == metrics["reward/ema"] == -1.0
    assert metrics["merge/count"] == 0
    assert metrics["merge/rollbacks"] == 5


def test_emergency_threshold_and_delay():
    assert not run(controller(), [-1.0] * 20, raw_kl=2.0)
    assert min(run(controller(), [-1.0] * 20, raw_kl=2.01)) == 4
    assert not run(controller(), [-1.0] * 20, raw_kl=float("nan"))


def test_an_emergency_does_not_wait_while_steps_are_skipped():
    target = controller()
    assert target.update(0, -1.0, 3.0) == []
    assert target.update(1, -1.0, 3.0, learned=False) == [MergeAction.ROLLBACK]
    assert controller().update(0, -1.0, 2.0, learned=False) == []  # skipped for another reason
    published = controller("paper")
    assert published.update(0, -1.0, 3.0) == [MergeAction.SNAPSHOT]
    assert published.update(1, -1.0, 3.0, learned=False) == []


def test_rollback_during_the_first_baseline():
    target = controller(baseline_steps=8)
    assert run(target, [-9.0] * 8, raw_kl=3.0) == {4: [MergeAction.ROLLBACK]}
    assert "merge/baseline" not in target.metrics()  # it counts anew, without the rewards of the abandoned weights
    run(target, [-1.0] * 8, start=8)
    assert target.metrics()["merge/baseline"] == -1.0


def test_reward_rollback_returns_to_the_best_heldout():
    target = controller(rollback_drop=0.1)
    assert target.update(0, -1.0, 0.0, heldout=-1.2) == [MergeAction.SNAPSHOT_BEST_HELDOUT]
    assert target.update(1, -0.9, 0.0, heldout=-1.0) == [MergeAction.SNAPSHOT, MergeAction.SNAPSHOT_BEST_HELDOUT]
    assert target.update(2, -0.5, 0.0, heldout=-1.09) == [MergeAction.SNAPSHOT]
    assert target.update(3, -0.6, 0.0) == []
    assert target.update(4, -0.7, 0.0, heldout=-1.11) == [MergeAction.REWARD_ROLLBACK]
    # The peak of the abandoned weights is forgotten; the average is that of the weights that came back.
    metrics = target.metrics()
    assert metrics["reward/ema"] == -0.9
    assert metrics["merge/peak"] == metrics["merge/baseline"] == -1.0
    # The best still stands.
    assert MergeAction.REWARD_ROLLBACK in target.update(5, -0.9, 0.0, heldout=-1.2)


def test_a_fall_below_the_start_is_a_reward_rollback():
    target = controller(rollback_drop=0.1)
    assert target.begin(-1.0) == [MergeAction.SNAPSHOT_BEST_HELDOUT]
    assert target.update(0, -1.0, 0.0, heldout=-1.09) == []
    assert target.update(1, -1.0, 0.0, heldout=-1.11) == [MergeAction.REWARD_ROLLBACK]
    assert target.metrics()["reward/ema"] == -1.0
    assert controller("paper").begin(-1.0) == []
    assert controller().begin(float("nan")) == []


def test_after_a_rollback_to_zero_the_start_counts_again():
    target = controller(rollback_drop=0.1)
    target.begin(-1.0)
    assert MergeAction.SNAPSHOT_BEST_HELDOUT in target.update(0, -1.0, 0.0, heldout=-0.5)
    assert target.update(1, -1.0, 0.0, heldout=-0.7) == [MergeAction.REWARD_ROLLBACK]
    rollback = [MergeAction.ROLLBACK, MergeAction.SNAPSHOT_BEST_HELDOUT]
    assert target.update(2, -1.0, 3.0, learned=False) == rollback
    assert target.update(3, -1.0, 0.0, heldout=-1.05) == []
    assert target.update(4, -1.0, 0.0, heldout=-1.2) == [MergeAction.REWARD_ROLLBACK]


def test_a_gain_on_the_heldout_conditions_is_merged_in_an_emergency():
    # The rewards of training stay below their baseline, because the conditions of the first steps were easier.
    target = controller()
    target.begin(-1.0)
    target.update(0, -0.5, 0.0)
    snapshots = [MergeAction.SNAPSHOT_BEST_HELDOUT, MergeAction.SNAPSHOT]
    assert target.update(1, -0.6, 0.0, heldout=-0.8) == snapshots
    assert run(target, [-0.6] * 9, start=2) == {}  # not a peak merge: the average has not risen
    assert target.update(11, -0.6, 3.0) == [MergeAction.EMERGENCY_MERGE]
    assert target.metrics()["merge/baseline"] == -0.5


def test_no_merge_below_the_bases_own_heldout_score():
    # The rewards of training rise above their baseline, but the policy is still worse than the base.
    target = controller(rollback_drop=0.5)
    target.begin(-1.0)
    target.update(0, -3.0, 0.0, heldout=-1.2)
    assert run(target, [-2.0] * 12, start=1) == {1: [MergeAction.SNAPSHOT]}
    assert MergeAction.ROLLBACK in target.update(13, -2.0, 3.0)
    # Once it is better, it is merged.
    target.begin(-1.0)
    target.update(14, -2.0, 0.0, heldout=-0.9)
    assert [MergeAction.PEAK_MERGE] in run(target, [-1.0] * 12, start=15).values()


def test_a_score_from_before_a_rollback_stops_no_merge():
    target = controller(rollback_drop=0.5)
    target.begin(-1.0)
    target.update(0, -2.0, 0.0, heldout=-1.2)
    assert MergeAction.ROLLBACK in target.update(1, -2.0, 9.0, learned=False)
    assert [MergeAction.PEAK_MERGE] in run(target, [-1.0] * 12, start=2).values()


def test_reward_rollback_comes_before_a_merge():
    target = controller()
    target.update(0, -1.0, 0.0, heldout=-1.0)
    run(target, [-0.5] + [-0.8] * 7, start=1)
    assert target.update(9, -0.8, 3.0, heldout=-2.0) == [MergeAction.REWARD_ROLLBACK]


def test_broken_heldout_score():
    target = controller()
    assert target.update(0, -1.0, 0.0, heldout=float("nan")) == []
    target.update(1, -1.0, 0.0, heldout=-1.0)
    assert target.update(2, -1.0, 0.0, heldout=float("nan")) == [MergeAction.REWARD_ROLLBACK]


def test_heldout_best_is_forgotten_with_the_base():
    target = controller()
    target.begin(-0.6)
    target.update(0, -1.0, 0.0, heldout=-0.5)
    run(target, [-0.8] + [-0.9] * 8, start=1)
    assert target.metrics()["merge/count"] == 1
    assert target.update(10, -0.9, 0.0, heldout=-0.9) == [MergeAction.SNAPSHOT_BEST_HELDOUT]


def test_published_rule_ignores_heldout():
    target = controller("paper")
    target.update(0, -1.0, 0.0, heldout=-1.0)
    assert target.update(1, -1.1, 0.0, heldout=-9.0) == []


def test_a_broken_reward_leaves_the_average():
    target = controller()
    run(target, [-1.0, float("nan"), float("inf"), -1.0])
    assert target.metrics()["reward/ema"] == -1.0


@pytest.mark.parametrize("policy", ["guarded", "paper"])
def test_resumed_equals_uninterrupted(policy):
    random_ = random.Random(0)
    steps = [
        (
            -1.0 + 0.002 * s + random_.gauss(0, 0.1),
            abs(random_.gauss(0, 1.2)),
            random_.gauss(-1, 0.2) if s % 7 == 0 else None,
        )
        for s in range(200)
    ]
    fields = {"ema_beta": 0.9, "baseline_steps": 4, "rollback_drop": 0.4}

    def play(target, first, last):
        return [target.update(s, *steps[s]) for s in range(first, last)]

    whole = controller(policy, **fields)
    expected = play(whole, 0, 200)
    assert {a for actions in expected for a in actions} >= {MergeAction.SNAPSHOT, MergeAction.EMERGENCY_MERGE}
    actions, state = [], None
    for first in range(0, 200, 13):
        part = controller(policy, **fields)
        if state is not None:
            part.load_state_dict(json.loads(state))
        actions += play(part, first, min(first + 13, 200))
        state = json.dumps(part.state_dict(), allow_nan=False)
    assert actions == expected
    assert part.metrics() == whole.metrics()


@pytest.mark.parametrize("bad", [{"ema_beta": 1.0}, {"baseline_steps": 0}, {"patience": -1}, {"min_gain": float("nan")}])
def test_bad_config(bad):
    with pytest.raises(UserError, match=next(iter(bad)).replace("_", "-")):
        MergeConfig(**bad)
