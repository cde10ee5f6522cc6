"""Is the reward being gamed? Compares how the samples changed with how the reward changed.

If the reward rises because the pictures get better, their other properties stay near those of the targets or move towards
them. If it is gamed, something else changes, too: grain, flat colours, one picture for every seed. The rule is described in
docs/report.md: it warns if the reward rises by more than twice its standard error while a statistic gets worse by more than
a share of its first value and by more than three standard errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from launch.run_report.record import Array, RunRecord, paired
from reward.statistics import DIVERSITY, STATISTICS, TARGET

Sense = Literal["target", "higher", "lower"]
"""When a statistic gets better: nearer to the targets', higher, or lower."""
SENSES: dict[str, Sense] = {
    **dict.fromkeys(STATISTICS, "target"),
    DIVERSITY: "higher",
    "ssim": "higher",
    "psnr": "higher",
    "color": "lower",
}
WORSE = {
    "sharpness": "grain or blur",
    "color_entropy": "too few or too many colours",
    "edge_density": "scribble or smears",
    DIVERSITY: "the samples of a condition become alike",
    "ssim": "the picture's structure drifts from the target's",
    "psnr": "pixels drift from the target's",
    "color": "the palette drifts from the target's",
}
WINDOW, LEAST = 0.2, 5


@dataclass(frozen=True)
class Change:
    """A mean before and after, and the standard error of their difference. `target` is the targets' own mean, or None."""

    before: float
    after: float
    error: float
    target: float | None = None

    @property
    def difference(self) -> float:
        return self.after - self.before

    def worsening(self, sense: Sense) -> float:
        """By how much it got worse; negative where it got better."""
        if sense == "target":
            if self.target is None:
                return abs(self.difference)
            return abs(self.after - self.target) - abs(self.before - self.target)
        return self.difference if sense == "lower" else -self.difference


@dataclass(frozen=True)
class Finding:
    """A statistic over a run: in training, on held-out conditions, and its correlation with the reward within groups."""

    name: str
    training: Change | None
    heldout: Change | None
    correlation: float | None
    warned: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """The findings, and the change of the reward itself in training and on held-out conditions."""

    findings: tuple[Finding, ...]
    reward: dict[str, Change]
    drift: float

    @property
    def warnings(self) -> list[str]:
        """A sentence for each statistic that got worse while the reward rose."""
        found = []
        for finding in self.findings:
            for view in finding.warned:
                change = finding.training if view == "training" else finding.heldout
                assert change is not None
                towards = "" if change.target is None else f", where the targets have {change.target:.4g}"
                found.append(
                    f"{view}: the reward rose by {self.reward[view].difference:.4g}, and {finding.name} went from "
                    f"{change.before:.4g} to {change.after:.4g}{towards}: {WORSE[finding.name]}"
                )
        return found

    @property
    def rising(self) -> list[str]:
        """The views in which the reward rose."""
        return [view for view, change in self.reward.items() if rose(change)]


def rose(change: Change) -> bool:
    """Whether it went up by more than chance explains."""
    return change.difference > 2 * change.error


def inspect(record: RunRecord, drift: float = 0.1) -> Inspection:
    """Look for signs of a gamed reward; `drift` is the share of its first value that a statistic may lose."""
    views: dict[str, Callable[[str], Change | None]] = {
        "training": lambda name: in_training(record, name),
        "held-out": lambda name: on_heldout(record, name),
    }
    reward = {view: change for view, look in views.items() if (change := look("reward")) is not None}
    findings = []
    for name, sense in SENSES.items():
        changes = {view: look(name) for view, look in views.items()}
        if all(change is None for change in changes.values()):
            continue
        warned = tuple(
            view
            for view, change in changes.items()
            if change is not None and view in reward and rose(reward[view]) and _worse(change, sense, drift)
        )
        findings.append(Finding(name, changes["training"], changes["held-out"], _correlation(record, name), warned))
    return Inspection(tuple(findings), reward, drift)


def _worse(change: Change, sense: Sense, drift: float) -> bool:
    by = change.worsening(sense)
    return by > drift * abs(change.before) and by > 3 * change.error


def in_training(record: RunRecord, name: str) -> Change | None:
    """From the first to the last fifth of the steps: means of steps, whose scatter gives the error."""
    values = _of_steps(record, name)
    if values is None or len(values) < 2 * LEAST:
        return None
    count = max(LEAST, round(WINDOW * len(values)))
    first, last = values[:count], values[-count:]
    error = float(np.sqrt(first.var(ddof=1) / count + last.var(ddof=1) / count))
    target = _of_steps(record, TARGET + name)
    return Change(float(first.mean()), float(last.mean()), error, None if target is None else float(target.mean()))


def on_heldout(record: RunRecord, name: str) -> Change | None:
    """From before training to after it, paired over the conditions of the set `heldout`."""
    for held_out, first, last in paired(record):
        if held_out == "heldout" and name in first["parts"] and name in last["parts"]:
            before, after = (np.asarray(scores["parts"][name], np.float64) for scores in (first, last))
            gains = after - before
            error = float(gains.std(ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else float("inf")
            target = last["parts"].get(TARGET + name)
            return Change(
                float(before.mean()), float(after.mean()), error, None if target is None else float(np.mean(target))
            )
    return None


def column(record: RunRecord, name: str) -> Array | None:
    """A column of the trajectories: the reward or a component, float64 [N]."""
    values = record.rows.get(name if name == "reward" else f"component_{name}")
    return None if values is None else values.astype(np.float64)


def _of_steps(record: RunRecord, name: str) -> Array | None:
    """Means of a column over the trajectories of each step, those without a finite value left out."""
    values = column(record, name)
    return None if values is None else step_means(record.rows["step"], values)


def step_means(steps: Array, values: Array) -> Array:
    """Means by step, in the order of the steps."""
    finite = np.isfinite(values)
    _, where = np.unique(steps[finite], return_inverse=True)
    return np.bincount(where, values[finite]) / np.bincount(where)


def _correlation(record: RunRecord, name: str) -> float | None:
    """Of a statistic with the reward within groups, pooled over all of them: what the reward selects for."""
    values, rewards = column(record, name), column(record, "reward")
    if values is None or rewards is None:
        return None
    finite = np.isfinite(values) & np.isfinite(rewards)
    _, keys = np.unique(record.rows["key"][finite], return_inverse=True)
    _, groups = np.unique(record.rows["step"][finite] * (keys.max(initial=0) + 1) + keys, return_inverse=True)
    a, b = (_centred(column[finite], groups) for column in (values, rewards))
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / scale) if scale > 0 else None


def _centred(values: Array, groups: Array) -> Array:
    return values - (np.bincount(groups, values) / np.bincount(groups))[groups]


def quantiles(record: RunRecord, name: str, shares: Sequence[float]) -> tuple[Array, Array] | None:
    """(steps [N], quantiles [len(shares), N]) of a column over the trajectories of each step."""
    values = column(record, name)
    if values is None:
        return None
    steps = record.rows["step"]
    order = np.argsort(steps, kind="stable")
    found, first = np.unique(steps[order], return_index=True)
    parts = np.split(values[order], first[1:])
    return found, np.array([np.nanquantile(part, shares) for part in parts]).T
