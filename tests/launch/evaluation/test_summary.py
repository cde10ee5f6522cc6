"""The table of an evaluation, also of a metric that has gone wrong."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest

from launch.evaluation.pictures import ranked
from launch.evaluation.summary import Heading, markdown, summarise

SHOWN = (Heading("reward/target", "Reward", "higher"), Heading("seconds", "s/image", "lower"))


@pytest.mark.parametrize(("rewards", "count"), [([math.nan] * 3, 3), ([0.5, math.inf, 0.25], 1)])
def test_a_metric_that_is_not_finite_is_warned_of(rewards, count):
    columns = {"method": ["a"] * 3, "key": ["x", "y", "z"], "reward/target": rewards, "seconds": [0.1, 0.2, 0.3]}
    text = markdown(summarise(pa.table(columns), SHOWN, {}, None, None, {}))
    assert f"warning: Reward (target) of a is not finite for {count} of 3 conditions." in text.splitlines()
    assert "s/image of a" not in text


def test_a_missing_value_ranks_last():
    assert ranked([1.0, math.nan, 2.0], True, 1) == {"best": [2], "median": [0], "worst": [1]}
    assert ranked([1.0, math.nan, 2.0], False, 1) == {"best": [0], "median": [2], "worst": [1]}
