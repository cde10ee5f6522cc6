"""Means, their errors, and paired tests, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import wilcoxon

from launch.evaluation.statistics import by_condition, compare, estimate


def named(values) -> dict[str, float]:
    return {f"k{i}": float(v) for i, v in enumerate(values)}


def test_samples_of_a_condition_count_once():
    """Errors are over conditions: three samples of each are no more conditions."""
    values = np.random.default_rng(0).normal(size=20)
    keys = [f"k{i}" for i in range(20) for _ in range(3)]
    repeated = estimate(np.array(list(by_condition(keys, np.repeat(values, 3).tolist()).values())))
    assert repeated == estimate(values)
    assert by_condition(["b", "a", "b"], [1.0, 5.0, 3.0]) == {"b": 2.0, "a": 5.0}


def test_the_estimate():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    found = estimate(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.error == pytest.approx(values.std(ddof=1) / 20)
    # The mean of 400 values is nearly Gaussian.
    assert found.low == pytest.approx(found.mean - 1.96 * found.error, abs=0.15 * found.error)
    assert found.high == pytest.approx(found.mean + 1.96 * found.error, abs=0.15 * found.error)
    assert estimate(values) == found


def test_one_condition_has_no_error():
    found = estimate(np.array([2.0]))
    assert (found.mean, found.error, found.low, found.high, found.n) == (2.0, None, None, None, 1)


def test_a_paired_test_sees_what_the_spread_would_hide():
    rng = np.random.default_rng(2)
    base, gain = rng.normal(0, 10, size=50), rng.normal(0.2, 0.1, size=50)
    test = compare(named(base + gain), named(base), higher_is_better=True)
    assert test.difference.mean == pytest.approx(gain.mean())
    assert test.difference.low > 0
    assert test.p_value == pytest.approx(wilcoxon(gain).pvalue, rel=1e-3)
    assert test.wins == pytest.approx((gain > 0).mean())
    assert compare(named(base + gain), named(base), higher_is_better=False).wins == pytest.approx((gain < 0).mean())


def test_equal_methods():
    test = compare(named([1.0, 2.0]), named([1.0, 2.0]), higher_is_better=True)
    assert (test.difference.mean, test.wins, test.p_value) == (0.0, 0.5, 1.0)


def test_other_conditions_cannot_be_paired():
    with pytest.raises(ValueError, match="different conditions"):
        compare({"a": 1.0}, {"b": 1.0}, higher_is_better=True)
