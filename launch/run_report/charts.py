"""The charts of a run: one for each question about it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from launch.run_report.curves import Band, Chart, Line, smoothed
from launch.run_report.hacking import SENSES, WORSE, quantiles
from launch.run_report.record import RunRecord, Series
from reward.statistics import TARGET

_EVERY_STEP = 30
"""Curves with more points than this are drawn faint, under their running mean."""


def training_charts(record: RunRecord) -> list[Chart]:
    """How the run went; charts without any data are left out."""
    charts = [
        _reward(record),
        _chart(
            record,
            "KL to the reference policy",
            {"kl/raw": "raw KL"},
            "PANW-weighted mean per token, before beta.",
            zero=True,
            levels={"emergency": _setting(record, "merge", "emergency_kl")},
        ),
        _per_scale(record, "KL per scale", r"kl/per_scale/(\d+)", "Mean KL per token of each scale, coarse to fine."),
        _chart(record, "Entropy", {"policy/entropy": "entropy"}, "Nats per token; near 0 the policy has collapsed."),
        _chart(
            record,
            "Clip fraction",
            {"policy/clip_frac": "clipped"},
            "Share of token ratios outside 1 +- eps; 0 with one update per rollout, where the ratio is exactly 1.",
            zero=True,
        ),
        _chart(record, "Policy ratio", {"policy/ratio_mean": "mean ratio"}, "New against old probability of the tokens."),
        _chart(record, "Gradient norm", {"grad/norm": "before clipping"}, "", zero=True),
        _chart(record, "Loss", {"loss/total": "total", "loss/policy": "policy", "loss/kl": "beta KL"}, ""),
        *_supervised(record),
    ]
    return [chart for chart in charts if chart is not None]


def hacking_charts(record: RunRecord) -> list[Chart]:
    """The statistics that change when a reward is gamed."""
    charts = []
    for name in SENSES:
        lines = list(_every_step("training", record.scalars.get(f"reward/component/{name}"), 0))
        if (heldout := record.scalars.get(f"heldout/{name}")) is not None:
            lines.append(Line("held-out", heldout.steps, heldout.values, "points", 1))
        target = record.scalars.get(f"reward/component/{TARGET}{name}")
        if target is not None:
            mean = np.full(len(target), float(np.nanmean(target.values)))
            lines.append(Line("targets", target.steps, mean, "dashed", 2))
        if lines:
            charts.append(Chart(name.replace("_", " "), lines, f"A bad sign: {WORSE[name]}."))
    return charts


def time_charts(record: RunRecord) -> list[Chart]:
    """Speed and memory over the run."""
    rss = {"memory/rss_gib": "process", "memory/cuda_peak_gib": "GPU, peak"}
    busy = {tag: tag.partition("/")[2] for tag in record.scalars if tag.startswith("busy/")}
    charts = [
        _chart(record, "Seconds per step", {"time/step": "step"}, "", zero=True),
        _chart(record, "Memory, GiB", rss, "", zero=True),
        _chart(record, "Busy workers", busy, "Share of the time that the workers of a role worked.", zero=True),
    ]
    return [chart for chart in charts if chart is not None]


def phases(record: RunRecord) -> list[tuple[str, float, float]]:
    """(phase, mean seconds per step, share of the whole), the slowest first."""
    sums = ("time/step", "time/wait") if record.kind == "grpo" else ()
    tags = [tag for tag in record.scalars if tag.startswith("time/") and tag not in sums]
    means = {tag.partition("/")[2]: float(np.nanmean(record.scalars[tag].values)) for tag in tags}
    if record.kind == "grpo" and "time/wait" in record.scalars:
        means["waiting for rollouts and rewards"] = float(np.nanmean(record.scalars["time/wait"].values))
    whole = sum(means.values())
    return [(name, seconds, seconds / whole) for name, seconds in sorted(means.items(), key=lambda m: -m[1]) if whole > 0]


def _reward(record: RunRecord) -> Chart | None:
    lines = list(_every_step("step", record.scalars.get("reward/mean"), 0, smooth=False))
    for label, tag, style, colour in (
        ("moving average", "reward/ema", "line", 0),
        ("held-out", "reward/heldout", "points", 1),
    ):
        if tag in record.scalars:
            series = record.scalars[tag]
            lines.append(Line(label, series.steps, series.values, style, colour))  # type: ignore[arg-type]
    found = quantiles(record, "reward", (0.1, 0.9))
    band = None if found is None else Band("10 to 90 % of samples", found[0], found[1][0], found[1][1])
    about = "Higher is better. Held-out conditions are scored with fixed seeds, so their curve has no sampling noise."
    return Chart("Reward", lines, about, band) if lines else None


def _supervised(record: RunRecord) -> Iterator[Chart | None]:
    """SFT: loss and accuracy, in training and of every validation split."""
    splits = sorted({tag.partition("/")[0] for tag in record.scalars if re.fullmatch(r"[^/]+/top1", tag)})
    for title, train, own in (("Cross-entropy", "loss/train", "loss"), ("Accuracy", "accuracy/train", "top1")):
        lines = list(_every_step("training", record.scalars.get(train), 0))
        for number, split in enumerate(splits, start=1):
            if (series := record.scalars.get(f"{split}/{own}")) is not None:
                lines.append(Line(split, series.steps, series.values, "points", number))
        yield (
            Chart(title, lines, "Nats per token." if own == "loss" else "Share of tokens guessed first.") if lines else None
        )
    for split in splits:
        pattern = rf"{re.escape(split)}_scales/loss/(\d+)"
        yield _per_scale(record, f"Cross-entropy per scale, {split}", pattern, "Coarse to fine.")
    yield _chart(record, "Learning rate", {"lr": "lr"}, "", zero=True)
    yield _chart(record, "Images per second", {"throughput/images_per_s": "images"}, "", zero=True)


def _chart(
    record: RunRecord,
    title: str,
    tags: dict[str, str],
    about: str,
    zero: bool = False,
    levels: dict[str, float | None] | None = None,
) -> Chart | None:
    """A chart of some scalars, {tag: label}; None if the run has none of them."""
    found = [
        (number, label, record.scalars[tag]) for number, (tag, label) in enumerate(tags.items()) if tag in record.scalars
    ]
    if len(found) == 1:
        lines = [line for number, label, series in found for line in _every_step(label, series, number)]
    else:  # running means of all of them would be too many curves
        lines = [Line(label, series.steps, series.values, colour=number) for number, label, series in found]
    known = {name: level for name, level in (levels or {}).items() if level is not None}
    return Chart(title, lines, about, levels=known, zero=zero) if lines else None


def _every_step(label: str, series: Series | None, colour: int, smooth: bool = True) -> Iterator[Line]:
    """A noisy curve, faint under its running mean if it is long."""
    if series is None:
        return
    long = len(series) > _EVERY_STEP
    yield Line(label, series.steps, series.values, "faint" if long or not smooth else "line", colour)
    if long and smooth:
        window = max(5, len(series) // 20)
        yield Line(f"mean of {window}", series.steps, smoothed(series.values, window), "line", colour)


def _per_scale(record: RunRecord, title: str, pattern: str, about: str) -> Chart | None:
    found = {int(match[1]): tag for tag in record.scalars if (match := re.fullmatch(pattern, tag))}
    series = [(scale, record.scalars[found[scale]]) for scale in sorted(found)]
    window = max(1, max((len(s) for _, s in series), default=0) // 20)
    lines = [
        Line(str(scale), s.steps, smoothed(s.values, window), "line", index / max(1, len(series) - 1))
        for index, (scale, s) in enumerate(series)
    ]
    if window > 1:
        about += f" Running means of {window} steps."
    return Chart(title, lines, about) if lines else None


def _setting(record: RunRecord, *names: str) -> float | None:
    values: object = record.config
    for name in names:
        values = values.get(name) if isinstance(values, dict) else None
    return float(values) if isinstance(values, (int, float)) else None


def step_span(charts: Sequence[Chart]) -> tuple[int, int]:
    """First and last step of all curves."""
    steps = [line.steps for chart in charts for line in chart.lines if len(line.steps)]
    return (int(min(s[0] for s in steps)), int(max(s[-1] for s in steps))) if steps else (0, 1)
