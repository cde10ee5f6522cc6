"""Means over conditions with standard errors, and paired tests between two methods."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 5000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over n conditions, its standard error (None for n = 1 or a set-level metric), and a bootstrap interval."""

    mean: float
    error: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class PairedTest:
    """first - second over their common conditions: the mean difference, its error, a bootstrap interval, Wilcoxon's p."""

    difference: Estimate
    wins: float
    """Share of the conditions in which the first is better; ties count half."""
    p_value: float


def by_condition(keys: list[str], values: list[float]) -> dict[str, float]:
    """The mean of each condition's samples, in the order of the conditions.

    Only the conditions are independent draws, not their samples. All errors are therefore over conditions.
    """
    collected: dict[str, list[float]] = {}
    for key, value in zip(keys, values, strict=True):
        collected.setdefault(key, []).append(value)
    return {key: float(np.mean(of_key)) for key, of_key in collected.items()}


def estimate(values: NDArray) -> Estimate:
    """Estimate from one value per condition, [n]. The interval is a percentile bootstrap (Efron 1979) with a fixed seed."""
    n = len(values)
    mean = float(values.mean())
    if n < 2:
        return Estimate(mean, None, None, None, n)
    rng = np.random.default_rng(0)
    means = np.array([values[rng.integers(0, n, n)].mean() for _ in range(RESAMPLES)])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(mean, float(values.std(ddof=1) / n**0.5), float(low), float(high), n)


def compare(first: dict[str, float], second: dict[str, float], higher_is_better: bool) -> PairedTest:
    """Compare two methods' values by condition. Raises ValueError if their conditions differ."""
    if first.keys() != second.keys():
        raise ValueError("the two methods were measured on different conditions")
    differences = np.array([first[key] - second[key] for key in first])
    better = differences > 0 if higher_is_better else differences < 0
    wins = float(better.mean() + 0.5 * (differences == 0).mean())
    return PairedTest(estimate(differences), wins, _wilcoxon(differences))


def _wilcoxon(differences: NDArray) -> float:
    """Two-sided p of the signed-rank test (Wilcoxon 1945); 1 if all differences are zero."""
    if not differences.any():
        return 1.0
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences).pvalue)
