"""The rule that looks for a gamed reward, on runs whose answer is known."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from launch.run_report.hacking import Change, inspect, quantiles
from launch.run_report.page import render
from launch.run_report.record import RunRecord

STEPS, GROUPS, SIZE = 40, 4, 8


def record(seed: int = 0, **drifts: float) -> RunRecord:
    """Forty steps in which each named column moves by this much from start to end, under noise of 0.05."""
    rng = np.random.default_rng(seed)
    step = np.repeat(np.arange(STEPS), GROUPS * SIZE)
    levels = {"reward": -2.0, "sharpness": 0.5, "target_sharpness": 1.0, "diversity": 0.4, "ssim": 0.6}
    rows = {"step": step, "key": np.array([f"c{i // SIZE % GROUPS}" for i in range(len(step))])}
    for name, level in levels.items():
        noise = 0.0 if name.startswith("target") else 0.05
        values = level + drifts.get(name, 0.0) * step / (STEPS - 1) + noise * rng.standard_normal(len(step))
        rows[name if name == "reward" else f"component_{name}"] = values
    return RunRecord(Path("run"), rows=rows)


def warned(found: RunRecord, **flags) -> set[str]:
    return {finding.name for finding in inspect(found, **flags).findings if finding.warned}


def test_a_rising_reward_alone_is_no_sign():
    found = inspect(record(reward=0.5))
    assert found.rising == ["training"]
    assert found.warnings == []


@pytest.mark.parametrize(
    ("drifts", "names"),
    [
        ({"diversity": -0.2}, {"diversity"}),
        ({"diversity": 0.2}, set()),
        ({"ssim": -0.2}, {"ssim"}),
        ({"ssim": 0.2}, set()),
        ({"sharpness": -0.3}, {"sharpness"}),  # away from the targets' 1.0
        ({"sharpness": 0.4}, set()),  # towards it
        ({"sharpness": 1.5}, {"sharpness"}),  # and far beyond it
        ({"sharpness": -0.3, "diversity": -0.2}, {"sharpness", "diversity"}),
    ],
)
def test_only_what_gets_worse_counts(drifts, names):
    assert warned(record(reward=0.5, **drifts)) == names
    assert warned(record(reward=0.0, **drifts)) == set()  # no gain that could be false
    assert warned(record(reward=-0.5, **drifts)) == set()


def test_small_drifts_are_allowed_by_the_share_that_is_asked_for():
    slight = record(reward=0.5, diversity=-0.03)
    assert warned(slight) == set()
    assert "diversity" in warned(slight, drift=0.02)


def test_noise_alone_rarely_warns():
    """With no share allowed the errors alone have to hold: 3 of them are passed in 0.5 % of looks at windows of 8 steps."""
    found = []
    for seed in range(20):
        noisy = record(seed, reward=0.5)
        noisy.rows["component_diversity"] += np.random.default_rng(seed).normal(0, 0.2, STEPS).repeat(GROUPS * SIZE)
        found += warned(noisy, drift=0.0)
        assert warned(noisy) == set()
    assert len(found) <= 3


def test_too_few_steps():
    few = record(reward=0.5)
    few.rows = {name: values[few.rows["step"] < 9] for name, values in few.rows.items()}
    assert inspect(few).reward == {}
    assert inspect(RunRecord(Path("run"))).findings == ()


def test_held_out_scores_are_paired():
    """Conditions differ far more than the policy moves them; the pairs show it all the same."""
    level = np.linspace(1.0, 9.0, 12)
    first, last = ({"step": at, "keys": ["k"], "parts": {}} for at in (0, 9))
    for scores, gain, loss in ((first, 0.0, 0.0), (last, 0.1, 1.2)):
        jitter = 0.01 * np.sin(np.arange(12) * (1 + scores["step"]))
        scores["parts"] = {"reward": list(gain - level + jitter), "color": list(level + loss + jitter)}
    found = inspect(RunRecord(Path("run"), heldout={"heldout": [first, last]}))
    assert found.rising == ["held-out"]
    (text,) = found.warnings
    assert text.startswith("held-out: the reward rose by 0.09939, and color")
    assert "color went from 5 to 6.2" in text


def test_the_verdict_tells_which_reward_rose():
    """A view in which it fell is not among those that rose."""
    falling = record(reward=-0.5)
    level = np.linspace(1.0, 9.0, 12)
    jitter = 0.01 * np.sin(np.arange(12))
    scores = [{"step": at, "keys": ["k"], "parts": {"reward": list(at / 90 - level + jitter * at)}} for at in (0, 9)]
    falling.heldout["heldout"] = scores
    page = render(falling)
    assert re.search(r"The reward rose \(held-out \+0\.1\d+ &plusmn; [\d.]+; not beyond chance: training -", page)


def test_correlation_is_within_groups():
    """Groups whose means lie on a rising line, while within each the statistic falls as the reward rises."""
    step, key = np.zeros(40, int), np.repeat([f"c{i}" for i in range(4)], 10)
    level, within = np.repeat(np.arange(4.0), 10), np.tile(np.linspace(-0.1, 0.1, 10), 4)
    rows = {"step": step, "key": key, "reward": level + within, "component_ssim": level - within}
    assert np.corrcoef(rows["reward"], rows["component_ssim"])[0, 1] > 0.9
    (finding,) = (f for f in inspect(with_heldout(RunRecord(Path("run"), rows=rows))).findings if f.name == "ssim")
    assert finding.correlation == pytest.approx(-1.0)


def with_heldout(found: RunRecord) -> RunRecord:
    """With scores before and after, so that there is something to show of a single step."""
    scores = [{"step": at, "keys": [], "parts": {"ssim": [0.5, 0.5], "reward": [0.0, 0.0]}} for at in (0, 1)]
    found.heldout["heldout"] = scores
    return found


def test_what_worsening_means():
    change = Change(before=0.5, after=0.8, error=0.0, target=1.0)
    assert change.worsening("target") == pytest.approx(-0.3)
    assert change.worsening("higher") == pytest.approx(-0.3)
    assert change.worsening("lower") == pytest.approx(0.3)
    assert Change(0.5, 1.8, 0.0, 1.0).worsening("target") == pytest.approx(0.3)


def test_quantiles_follow_the_steps():
    rows = {"step": np.array([1, 0, 1, 0]), "reward": np.array([3.0, 1.0, 5.0, 2.0])}
    found = quantiles(RunRecord(Path("run"), rows=rows), "reward", (0.0, 1.0))
    assert found is not None
    assert found[0].tolist() == [0, 1]
    assert found[1].tolist() == [[1.0, 3.0], [2.0, 5.0]]
