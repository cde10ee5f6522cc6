"""Before against after: a paired comparison over conditions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from data.conditions import spread
from launch.rl.heldout import before_after, compare, not_finite, save_scores
from launch.rl.reports import HeldoutReport, HeldoutTally
from stylevar.contracts import ConditionBatch, Scores


def report(rewards: list[list[float]], keys: tuple[str, ...] = ("a", "b", "c", "d"), shown: int = 2) -> HeldoutReport:
    values = torch.tensor(rewards)
    samples = torch.full((shown, values.shape[1], 3, 8, 8), int(100 + values.nan_to_num().mean()), dtype=torch.uint8)
    grid = torch.zeros(3, 8, 8, dtype=torch.uint8)
    return HeldoutReport(keys, values, {"total": -values / 5, "ssim": values}, keys[::2][:shown], samples, grid)


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
    asked = []

    def condition(at: int):
        asked.append(at)
        return tuple(torch.zeros(3, 8, 8, dtype=torch.uint8) for _ in range(3))

    path = before_after(run, "heldout", 0, 60, condition)
    with Image.open(path) as image:
        width, height = image.size
    assert width > height  # seven columns, two rows
    assert asked == [0, 2]  # the positions of the sampled conditions among all


def test_the_picture_of_a_run_of_an_older_version_has_the_rows_that_both_scorings_kept(run):
    file = run / "heldout" / "heldout_00000000.npz"
    samples = np.load(file)["samples"]
    np.savez_compressed(file, samples=samples)  # without keys: those of the first conditions, a and b
    asked = []
    before_after(run, "heldout", 0, 60, lambda at: (asked.append(at), (torch.zeros(3, 8, 8, dtype=torch.uint8),) * 3)[1])
    assert asked == [0]


def test_pictures_are_evenly_spread_over_the_conditions_whatever_the_batches():
    for sizes in ((9,), (4, 4, 1), (1,) * 9):
        tally, at = HeldoutTally(9, 3), 0
        for size in sizes:
            keys = tuple(f"c{i}" for i in range(at, at + size))
            images = torch.arange(at, at + size, dtype=torch.uint8)[:, None, None, None, None].expand(size, 2, 3, 8, 8)
            batch = ConditionBatch(keys, images[:, 0], images[:, 0], images[:, 0])
            scores = Scores(torch.zeros(size, 2), {"total": torch.zeros(size, 2)})
            tally.add_pictures(tally.add(keys, scores), batch, images, scores.rewards)
            at += size
        result = tally.report()
        assert result.shown == tuple(f"c{i}" for i in spread(9, 3))
        assert result.samples[:, 0, 0, 0, 0].tolist() == spread(9, 3)
        assert len(result.keys) == 9


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
