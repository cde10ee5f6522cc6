"""Before against after: a paired comparison over conditions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from launch.rl.heldout import before_after, compare, not_finite, save_scores
from launch.rl.reports import HeldoutReport


def report(rewards: list[list[float]], keys: tuple[str, ...] = ("a", "b", "c", "d"), shown: int = 2) -> HeldoutReport:
    values = torch.tensor(rewards)
    samples = torch.full((shown, values.shape[1], 3, 8, 8), int(100 + values.nan_to_num().mean()), dtype=torch.uint8)
    return HeldoutReport(
        keys, values, {"total": -values / 5, "ssim": values}, samples, torch.zeros(3, 8, 8, dtype=torch.uint8)
    )


BEFORE = [[-5.0, -4.0], [-3.0, -3.0], [-8.0, -6.0], [-1.0, -2.0]]
GAINS = [0.5, 0.7, 0.4, 0.8]


@pytest.fixture
def run(tmp_path):
    after = [[x + gain for x in row] for row, gain in zip(BEFORE, GAINS, strict=True)]
    save_scores(tmp_path, "heldout", 0, report(BEFORE))
    save_scores(tmp_path, "heldout", 60, report(after))
    return tmp_path


def test_the_gain_is_paired(run):
    result = compare(run, "heldout", 0, 60)
    assert result.before == pytest.approx(-4.0)
    assert result.gain == pytest.approx(0.6)
    assert result.gain_error == pytest.approx(np.std(GAINS, ddof=1) / 2)
    assert result.conditions == 4
    text = "\n".join(result.lines("heldout"))
    assert "+0.6000" in text
    assert ": a gain, above twice its error" in text
    assert "ssim -4.0000 -> -3.4000" in text


def test_a_gain_within_its_error_says_so(tmp_path):
    save_scores(tmp_path, "novel", 0, report(BEFORE))
    save_scores(tmp_path, "novel", 9, report(BEFORE[::-1]))
    assert "neither a gain nor a loss, within twice its error" in compare(tmp_path, "novel", 0, 9).lines("novel")[0]


def test_other_conditions_are_not_compared(run):
    save_scores(run, "heldout", 90, report(BEFORE, keys=("a", "b", "c", "x")))
    with pytest.raises(ValueError, match="different conditions"):
        compare(run, "heldout", 0, 90)


def test_the_picture_has_a_row_for_each_sampled_condition(run):
    condition = tuple(torch.zeros(3, 8, 8, dtype=torch.uint8) for _ in range(3))
    path = before_after(run, "heldout", 0, 60, [condition] * 3)
    with Image.open(path) as image:
        width, height = image.size
    assert width > height  # seven columns, two rows


def test_a_loss_is_called_a_loss(tmp_path):
    after = [[x - gain for x in row] for row, gain in zip(BEFORE, GAINS, strict=True)]
    save_scores(tmp_path, "heldout", 0, report(BEFORE))
    save_scores(tmp_path, "heldout", 9, report(after))
    assert compare(tmp_path, "heldout", 0, 9).lines("heldout")[0].endswith(": a loss, above twice its error")


def test_rewards_that_are_not_finite_are_neither(tmp_path):
    broken = report([[float("nan")] * 2] * 4)
    save_scores(tmp_path, "heldout", 0, report(BEFORE))
    save_scores(tmp_path, "heldout", 9, broken)
    assert "some rewards are not finite" in compare(tmp_path, "heldout", 0, 9).lines("heldout")[0]
    assert not_finite(broken.rewards) == "8 of 8 rewards are not finite"
    assert not_finite(torch.tensor(BEFORE)) is None
