"""Summarise rows in a table: estimates by method and column, as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from launch.evaluation.columns import Better, Column
from launch.evaluation.fid import FEATURES, frechet_distance
from launch.evaluation.retrieval import RETRIEVAL
from launch.evaluation.statistics import Estimate, PairedTest, by_condition, compare, estimate
from stylevar.atomic import file_aside

LPIPS_PART = "lpips_alex/content"


@dataclass(frozen=True)
class Heading:
    """A column of the printed table."""

    key: str
    title: str
    better: Better


@dataclass(frozen=True)
class Summary:
    """The whole result. `estimates` by method and column key; `tests` by column key, of the two `compared` methods."""

    headings: tuple[Heading, ...]
    estimates: dict[str, dict[str, Estimate]]
    compared: tuple[str, str] | None
    tests: dict[str, PairedTest]
    left_out: dict[str, str]
    notes: tuple[str, ...]


def headings(columns: Sequence[Column], reward: str | None, targets: bool, artfid: bool) -> tuple[Heading, ...]:
    """All columns of the table, in order. `reward` is the reward's key; sets with targets also have the retrieval test."""
    shown = [Heading(column.key, column.title, column.better) for column in columns]
    if reward is not None:
        shown.insert(0, Heading(reward, "Reward", "higher"))
    if targets:
        shown.append(Heading(RETRIEVAL, "retrieval", "higher"))
    if artfid:
        shown.append(Heading("fid/style", "FID (ArtFID)", "lower"))
        if any(column.key == LPIPS_PART for column in columns):
            shown.append(Heading("artfid", "ArtFID", "lower"))
    return (*shown, Heading("seconds", "s/image", "lower"))


def summarise(
    rows: pa.Table,
    shown: Sequence[Heading],
    features: dict[str, np.ndarray],
    styles: np.ndarray | None,
    compared: tuple[str, str] | None,
    left_out: dict[str, str],
) -> Summary:
    """Estimates of every method in `rows`; `features` by method and `styles` are Inception features [n, D]."""
    methods = list(dict.fromkeys(rows["method"].to_pylist()))
    values = {m: _values(rows.filter(pc.equal(rows["method"], m)), shown) for m in methods}
    estimates = {m: {key: estimate(np.array(list(of_key.values()))) for key, of_key in values[m].items()} for m in methods}
    notes = list(_not_finite(values, shown))
    if styles is not None:
        for m in methods:
            estimates[m] |= _artfid(features[m], styles, estimates[m].get(LPIPS_PART))
        fewest = min(len(styles), *(len(features[m]) for m in methods))
        if fewest <= FEATURES:
            notes.append(
                f"FID is biased upwards for few pictures ({fewest} here, for {FEATURES} dimensions): compare it only "
                "within this table, not with published values"
            )
    tests = {}
    if compared is not None:
        a, b = (values[name] for name in compared)
        tests = {
            h.key: compare(a[h.key], b[h.key], h.better == "higher") for h in shown if h.key in a and h.key != "seconds"
        }
    return Summary(tuple(shown), estimates, compared, tests, left_out, tuple(notes))


def _values(rows: pa.Table, shown: Sequence[Heading]) -> dict[str, dict[str, float]]:
    """{column: {condition: mean over its samples}} of one method."""
    keys = rows["key"].to_pylist()
    return {h.key: by_condition(keys, rows[h.key].to_pylist()) for h in shown if h.key in rows.column_names}


def _not_finite(values: dict[str, dict[str, dict[str, float]]], shown: Sequence[Heading]) -> Iterator[str]:
    """Warnings about values that are not finite, by method and column."""
    for method, of_method in values.items():
        for h in shown:
            means = np.array(list(of_method.get(h.key, {}).values()))
            if bad := int((~np.isfinite(means)).sum()):
                yield f"warning: {h.title}{_of(h.key)} of {method} is not finite for {bad} of {len(means)} conditions"


def _artfid(features: np.ndarray, styles: np.ndarray, lpips: Estimate | None) -> dict[str, Estimate]:
    if min(len(features), len(styles)) < 2:
        return {}  # a single picture has no spread
    fid = frechet_distance(features, styles)
    estimates = {"fid/style": Estimate(fid, None, None, None, len(features))}
    if lpips is not None:
        estimates["artfid"] = Estimate((1 + lpips.mean) * (1 + fid), None, None, None, len(features))
    return estimates


def write(summary: Summary, folder: Path) -> None:
    """Write summary.md, summary.csv and summary.json."""
    texts = {"md": markdown(summary), "csv": _csv(summary), "json": json.dumps(_plain(summary), indent=2) + "\n"}
    for ending, text in texts.items():
        with file_aside(folder / f"summary.{ending}") as aside:
            aside.write_text(text, encoding="utf-8")


def markdown(summary: Summary) -> str:
    """The table, the tests, and the metrics left out, as printed and written."""
    arrow = {"higher": "↑", "lower": "↓"}
    present = [h for h in summary.headings if any(h.key in e for e in summary.estimates.values())]
    names = [f"{h.title}{_of(h.key)} {arrow[h.better]}" for h in present]
    lines = [_row(["method", "n", *names]), _row(["---"] * (2 + len(names)))]
    for method, estimates in summary.estimates.items():
        cells = [_cell(estimates[h.key]) if h.key in estimates else "" for h in present]
        lines.append(_row([method, str(estimates["seconds"].n), *cells]))
    lines += ["", "Mean over n conditions ± standard error."]
    lines += [f"{note}." for note in summary.notes]
    if summary.compared is not None:
        first, second = summary.compared
        lines += ["", f"{first} against {second}, paired over conditions:", ""]
        lines += [_row(["metric", "difference", "95 % interval", "better in", "p (Wilcoxon)"]), _row(["---"] * 5)]
        for h in present:
            if (test := summary.tests.get(h.key)) is not None:
                d = test.difference
                interval = "" if d.low is None else f"{d.low:+.4g} to {d.high:+.4g}"
                name = f"{h.title}{_of(h.key)} {arrow[h.better]}"
                lines.append(_row([name, f"{d.mean:+.4g}", interval, f"{test.wins:.0%}", f"{test.p_value:.2g}"]))
    if summary.left_out:
        lines += ["", "Left out because weights are missing:", ""]
        lines += [f"- {reason}" for reason in dict.fromkeys(summary.left_out.values())]
    return "\n".join(lines) + "\n"


def _of(key: str) -> str:
    return f" ({key.partition('/')[2]})" if "/" in key else ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Estimate) -> str:
    """A mean and its error, with as many digits as the error justifies."""
    if value.error is None or not np.isfinite(value.error):
        return f"{value.mean:.4g}"
    if value.error == 0:
        return f"{value.mean:.4g} ± 0"
    digits = max(0, 1 - int(np.floor(np.log10(value.error))))
    if digits > 6:
        return f"{value.mean:.4g} ± {value.error:.1g}"
    return f"{value.mean:.{digits}f} ± {value.error:.{digits}f}"


def _csv(summary: Summary) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["method", "metric", "better", "mean", "standard_error", "low", "high", "n"])
    for method, estimates in summary.estimates.items():
        for h in summary.headings:
            if (e := estimates.get(h.key)) is not None:
                writer.writerow([method, h.key, h.better, e.mean, e.error, e.low, e.high, e.n])
    return buffer.getvalue()


def _plain(summary: Summary) -> dict:
    return {
        "columns": [asdict(h) for h in summary.headings],
        "methods": {m: {key: asdict(e) for key, e in by_key.items()} for m, by_key in summary.estimates.items()},
        "compared": summary.compared,
        "tests": {key: asdict(test) for key, test in summary.tests.items()},
        "left_out": summary.left_out,
        "notes": list(summary.notes),
    }
