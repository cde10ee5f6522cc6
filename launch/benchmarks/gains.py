"""Held-out gains of runs over the untrained model: paired over conditions, with errors over conditions and seeds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launch.common.text import duration
from launch.run_report.record import read_run
from reward.statistics import DIVERSITY, TARGET

REWARD = "reward"
BESIDE = {"ssim": "SSIM ↑", "psnr": "PSNR ↑", "color": "color ↓", DIVERSITY: "diversity ↑"}
"""Measures in the table that the reward usually does not contain, and which way is better. learn.json has all measures."""
ABOUT = (
    "The gain in reward and all columns after it are differences from the untrained model, sampled in the same way with the",
    "same random numbers: mean (standard error over conditions; over seeds). Training is the time of a run's steps, without",
    "held-out scoring, as the mean over seeds.",
)
OFF = 0.1
"""How far training time may be off before the table says so, as a share."""
Values = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Gain:
    """A mean over n conditions and S seeds.

    The standard error over conditions is that of the seeds' mean; None for a single condition. That over seeds is None for
    a single seed. `lowest` and `highest` are the seeds' own means.
    """

    mean: float
    error_conditions: float | None
    error_seeds: float | None
    lowest: float
    highest: float

    @staticmethod
    def of(values: NDArray[np.float64]) -> Gain:
        """Of `values` [S, n]."""
        seeds = values.mean(1)
        return Gain(
            float(seeds.mean()),
            standard_error(values.mean(0)),
            standard_error(seeds),
            float(seeds.min()),
            float(seeds.max()),
        )

    def text(self) -> str:
        """mean (error over conditions; over seeds)."""
        errors = "; ".join("-" if e is None else f"{e:.4f}" for e in (self.error_conditions, self.error_seeds))
        return f"{self.mean:+.4f} ({errors})"


def standard_error(values: NDArray[np.float64]) -> float | None:
    """Of the mean of `values` [n]; None for n = 1."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None


@dataclass(frozen=True)
class Scores:
    """Of a held-out set after `steps` steps: its conditions, and {metric: [n], the mean over each one's samples}."""

    steps: int
    keys: tuple[str, ...]
    values: Values

    @staticmethod
    def kept(scores: dict[str, Any]) -> Scores:
        """As a `RunRecord` holds them."""
        return Scores(scores["step"], tuple(scores["keys"]), {k: np.array(v, float) for k, v in scores["parts"].items()})

    def over(self, before: Scores) -> Values:
        """Gains on each condition over scores of the same run that hold all of them."""
        row = {key: i for i, key in enumerate(before.keys)}
        rows = [row[key] for key in self.keys]
        return {name: values - before.values[name][rows] for name, values in self.values.items()}


@dataclass(frozen=True)
class FinishedRun:
    """A finished run. `seconds` [N] are those of its first 1, 2, ... N steps, `trajectories` those of each step."""

    seconds: NDArray[np.float64]
    trajectories: int
    scores: dict[str, list[Scores]]
    """Of each held-out set, from before training to after it."""

    @staticmethod
    def read(path: Path) -> FinishedRun:
        """From the run's folder."""
        record = read_run(path)
        settings = record.config
        scores = {split: [Scores.kept(some) for some in of_split] for split, of_split in record.heldout.items()}
        each = settings["conditions"] * settings["rollout"]["group"]
        return FinishedRun(np.cumsum(record.scalars["time/step"].values), each, scores)

    def gains(self, split: str) -> Values:
        """Of the whole training, on a held-out set."""
        return self.scores[split][-1].over(self.scores[split][0])


@dataclass(frozen=True)
class Point:
    """The gain in reward on the set `heldout` after some steps; seconds are the mean over seeds."""

    steps: int
    seconds: float
    trajectories: int
    gain: Gain


@dataclass(frozen=True)
class Learned:
    """A variant's runs together. `expected`: seconds that training should have taken; None if no step was timed."""

    name: str
    flags: str
    seeds: tuple[int, ...]
    expected: float | None
    points: tuple[Point, ...]
    """The last one is the end of training."""
    untrained: dict[str, dict[str, float]]
    """{set: {metric: mean before training}}"""
    gains: dict[str, dict[str, Gain]]
    """{set: {metric: gain of the whole training}}"""
    lead: dict[str, Gain] | None
    """{set: gain in reward minus that of the first variant, on the same conditions and seeds}; None for the first one."""


def summarise(
    name: str, flags: str, expected: float | None, runs: Mapping[int, FinishedRun], first: Mapping[int, FinishedRun]
) -> Learned:
    """`runs` by seed, of which there is at least one; `first` are those of the first variant, if this is another."""
    one = next(iter(runs.values()))
    return Learned(
        name,
        flags,
        seeds=tuple(runs),
        expected=expected,
        points=tuple(_point(list(runs.values()), at) for at in range(1, len(one.scores["heldout"]))),
        untrained={split: _means([run.scores[split][0].values for run in runs.values()]) for split in one.scores},
        gains={split: _gains([run.gains(split) for run in runs.values()]) for split in one.scores},
        lead=_lead(runs, first) if first else None,
    )


def _point(runs: Sequence[FinishedRun], at: int) -> Point:
    scores = [run.scores["heldout"] for run in runs]
    steps = scores[0][at].steps
    gain = Gain.of(np.array([some[at].over(some[0])[REWARD] for some in scores]))
    return Point(steps, float(np.mean([run.seconds[steps - 1] for run in runs])), steps * runs[0].trajectories, gain)


def _means(values: Sequence[Values]) -> dict[str, float]:
    return {name: float(np.mean([some[name] for some in values])) for name in values[0] if _is_about_samples(name)}


def _gains(gains: Sequence[Values]) -> dict[str, Gain]:
    return {name: Gain.of(np.array([some[name] for some in gains])) for name in gains[0] if _is_about_samples(name)}


def _is_about_samples(name: str) -> bool:
    return not name.startswith(TARGET)


def _lead(runs: Mapping[int, FinishedRun], first: Mapping[int, FinishedRun]) -> dict[str, Gain]:
    """Over the seeds that both have; all variants are scored on the same sets."""
    pairs = [(run, first[seed]) for seed, run in runs.items() if seed in first]
    if not pairs:
        return {}
    return {
        split: Gain.of(np.array([one.gains(split)[REWARD] - other.gains(split)[REWARD] for one, other in pairs]))
        for split in pairs[0][0].scores
    }


def to_json(variants: Sequence[Learned]) -> str:
    """All numbers."""
    return json.dumps({"variants": [asdict(variant) for variant in variants]}, indent=1) + "\n"


def markdown(variants: Sequence[Learned]) -> str:
    """A table for each held-out set, and what the variants are."""
    lines: list[str] = []
    for split in variants[0].gains:
        lines += [*_table(split, variants), ""]
    lines += [*ABOUT, ""]
    lines += [f"- {variant.name}: `{variant.flags}`" for variant in variants]
    lines += [f"- note: {note}" for variant in variants for note in _notes(variant)]
    return "\n".join(lines) + "\n"


def _table(split: str, variants: Sequence[Learned]) -> Iterator[str]:
    beside = [name for name in BESIDE if all(name in variant.gains[split] for variant in variants)]
    titles = ["seeds", "steps", "training", "trajectories", "untrained reward", "gain in reward", "lowest to highest seed"]
    yield _row([split, *titles, f"gain over {variants[0].name}", *(BESIDE[name] for name in beside)])
    yield _row(["---"] * (len(titles) + 2 + len(beside)))
    for variant in variants:
        end, gains = variant.points[-1], variant.gains[split]
        gain, lead = gains[REWARD], (variant.lead or {}).get(split)
        cells: list[Any] = [len(variant.seeds), end.steps, duration(end.seconds), end.trajectories]
        cells += [f"{variant.untrained[split][REWARD]:.4f}", gain.text(), f"{gain.lowest:+.4f} to {gain.highest:+.4f}"]
        yield _row([variant.name, *cells, "" if lead is None else lead.text(), *(gains[name].text() for name in beside)])


def _notes(variant: Learned) -> Iterator[str]:
    seconds = variant.points[-1].seconds
    if variant.expected is not None and abs(seconds / variant.expected - 1) > OFF:
        yield (
            f"{variant.name} trained for {duration(seconds)} instead of the expected {duration(variant.expected)}: the "
            "machine was busy with something else, then or when steps were timed, so times are not comparable"
        )


def _row(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
