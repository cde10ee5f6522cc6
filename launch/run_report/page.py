"""The report as one HTML page that needs no network, no server and no other file."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import numpy as np

from data.triplets import UnusableImage, decode_rgb
from launch.run_report.assets import SCRIPT, STYLE
from launch.run_report.charts import hacking_charts, phases, step_span, time_charts, training_charts
from launch.run_report.curves import Chart, draw
from launch.run_report.hacking import SENSES, Change, Inspection, inspect
from launch.run_report.record import Mark, Picture, RunRecord, paired
from launch.run_report.settings import changed_settings
from stylevar.yaml_files import yaml_text

_QUALITY = 80
_TOP_PHASES = 12


def render(record: RunRecord, grids: int = 12, drift: float = 0.1) -> str:
    """The whole page. `grids`: how many pictures to show of each kind; `drift`: see `inspect`."""
    inspection = inspect(record, drift)
    sections = [
        ("Summary", _summary(record)),
        ("Curves", _charts(record, training_charts(record), 0)),
        ("Is the reward being gamed?", _hacking(record, inspection)),
        ("Samples over time", "".join(_samples(record, grids))),
        ("Where the time goes", _time(record)),
        ("Faults and machines", _faults(record)),
        ("Configuration", _configuration(record)),
    ]
    body = "".join(f"<section><h2>{title}</h2>{content}</section>" for title, content in sections if content)
    name = escape(record.path.resolve().name)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}: StyleVAR run</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><header><h1>{name}</h1><p>{_line(record)}</p></header>{_notices(record, inspection)}{body}"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _line(record: RunRecord) -> str:
    """A one-line description of the run."""
    config = record.config
    kind = "GRPO" if record.kind == "grpo" else "SFT"
    wanted = config.get("steps")
    parts = [f"{kind}, {'finished' if record.finished else 'not finished'}"]
    parts.append(f"{record.done} of {wanted} steps" if wanted else f"{record.done} steps")
    if record.kind == "grpo" and "conditions" in config:
        group = config.get("rollout", {}).get("group", "?")
        parts.append(f"{config['conditions']} conditions x {group} samples per step")
        parts.append(f"reward {config.get('reward', {}).get('reward', '?')}")
    elif "batch" in config:
        parts.append(f"batches of {config['batch']}")
    if record.starts and record.last_time:
        seconds = _worked(record)
        begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.starts[0].time))
        parts.append(f"begun {begun}, {_duration(seconds)} of steps")
    return " &middot; ".join(escape(part) for part in parts)


def _worked(record: RunRecord) -> float:
    """Seconds that the steps took."""
    if "time/step" not in record.scalars:
        return max(0.0, record.last_time - record.starts[0].time)
    # In SFT a step does not include reading its data.
    tags = ("time/step",) if record.kind == "grpo" else ("time/step", "time/data")
    return float(sum(np.nansum(record.scalars[tag].values) for tag in tags if tag in record.scalars))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _notices(record: RunRecord, inspection: Inspection) -> str:
    """What a reader must not miss."""
    found = [f'<p class="warn">{escape(text)}</p>' for text in inspection.warnings]
    if not record.done:
        found.append('<p class="note">No step is recorded yet. This page shows what there is so far.</p>')
    found += [f'<p class="note">{escape(text)}</p>' for text in record.notes]
    return f'<div class="notices">{"".join(found)}</div>' if found else ""


def _summary(record: RunRecord) -> str:
    """Some facts, and the held-out scores before and after."""
    rows = []
    for name, first, last in paired(record):
        before, after = (np.asarray(scores["parts"]["reward"]) for scores in (first, last))
        gain, error = (after - before).mean(), (after - before).std(ddof=1) / max(1, len(before)) ** 0.5
        verdict = "above" if gain > 2 * error else "within" if gain > -2 * error else "below"
        rows.append(
            [
                name,
                str(len(before)),
                f"{first['step']} and {last['step']}",
                f"{before.mean():.4f}",
                f"{after.mean():.4f}",
                f"{gain:+.4f} &plusmn; {error:.4f}",
                {"above": "a gain: above", "within": "by chance: within", "below": "a loss: above"}[verdict]
                + " twice the error",
            ]
        )
    head = ["held-out set", "conditions", "steps", "reward before", "after", "paired gain &plusmn; standard error", ""]
    table = _table(head, rows) if rows else ""
    facts = _table(["", ""], [[label, value] for label, value in _facts(record)], headless=True)
    return facts + table


def _facts(record: RunRecord) -> Iterator[tuple[str, str]]:
    """A few numbers of the run."""
    scalars = record.scalars
    count = record.config.get("monitor", {}).get("eval_conditions")
    few = f" (of the first {count} conditions)" if count else ""
    for label, tag, best in (
        (f"best held-out reward during the run{few}", "reward/heldout", max),
        ("lowest training loss", "loss/train", min),
    ):
        if tag in scalars and len(scalars[tag]):
            series = scalars[tag]
            value = best(v for v in series.values if np.isfinite(v)) if np.isfinite(series.values).any() else float("nan")
            at = int(series.steps[np.nanargmax(series.values == value)])
            yield label, f"{value:.4f} at step {at}"
    for tag in sorted(scalars):
        if tag.endswith("/loss") and tag.count("/") == 1 and tag != "loss/loss":
            series = scalars[tag]
            if not np.isfinite(series.values).any():
                continue
            at = int(np.nanargmin(series.values))
            yield f"lowest held-out loss, {tag.partition('/')[0]}", f"{series.values[at]:.4f} at step {series.steps[at]}"
    marks = record.marks()
    if record.kind == "grpo" and record.done:
        shown = ", ".join(f"{mark.kind.replace('_', ' ')} after step {mark.step}" for mark in marks)
        yield "merges and rollbacks", shown or "none"
    if "kl/raw" in scalars:
        series = scalars["kl/raw"]
        yield "raw KL at the end, at most", f"{series.values[-1]:.4f}, {np.nanmax(series.values):.4f}"
    if record.rows:
        yield "trajectories", f"{len(record.rows['step']):,}"


def _charts(record: RunRecord, charts: Sequence[Chart], first: int) -> str:
    """Figures side by side."""
    if not charts:
        return ""
    span, marks = step_span(charts), record.marks()
    return f'<div class="charts">{"".join(_figure(c, marks, span, first + n) for n, c in enumerate(charts))}</div>'


def _figure(chart: Chart, marks: Sequence[Mark], span: tuple[int, int], number: int) -> str:
    about = f"<p>{escape(chart.about)}</p>" if chart.about else ""
    return f"<figure><figcaption><b>{escape(chart.title)}</b>{about}</figcaption>{draw(chart, marks, span, number)}</figure>"


def _hacking(record: RunRecord, inspection: Inspection) -> str:
    """The verdict, the table behind it, and the curves."""
    if record.kind == "sft":
        return ""
    if not inspection.findings:
        return "<p>The run has recorded no statistics to judge by.</p>"
    rows = []
    for finding in inspection.findings:
        target = next(
            (c.target for c in (finding.training, finding.heldout) if c is not None and c.target is not None), None
        )
        near = "near its start" if target is None else "near the targets'"
        sense = {"target": near, "higher": "higher", "lower": "lower"}[SENSES[finding.name]]
        rows.append(
            [
                f"<b>{finding.name.replace('_', ' ')}</b>",
                sense,
                "" if target is None else f"{target:.4g}",
                _change(finding.training),
                _change(finding.heldout),
                "" if finding.correlation is None else f"{finding.correlation:+.2f}",
                "<mark>worse</mark>" if finding.warned else "ok" if inspection.rising else "",
            ]
        )
    head = ["statistic", "better is", "targets", "training: first to last fifth", "held-out: before to after"]
    table = _table([*head, "correlation with reward in a group", ""], rows)
    return f"<p>{_verdict(inspection)}</p>{table}{_charts(record, hacking_charts(record), 100)}"


def _verdict(inspection: Inspection) -> str:
    if not inspection.reward:
        return "Too few steps to tell: the rule needs ten steps, or held-out scores before and after."
    moved = {
        view: f"{view} {change.difference:+.4f} &plusmn; {change.error:.4f}" for view, change in inspection.reward.items()
    }
    rule = (
        f"A statistic counts as worse if it lost more than {inspection.drift:.0%} of its first value and more than three "
        "standard errors while the reward rose by more than two."
    )
    if not inspection.rising:
        every = ", ".join(moved.values())
        return f"The reward has not risen beyond chance ({every}), so there is no gain to question. {rule}"
    rose = ", ".join(moved[view] for view in inspection.rising)
    if still := [text for view, text in moved.items() if view not in inspection.rising]:
        rose += f"; not beyond chance: {', '.join(still)}"
    if inspection.warnings:
        return f"The reward rose ({rose}), and pictures got worse in ways that it does not see. {rule}"
    return f"The reward rose ({rose}) and no statistic got worse with it: no sign of a gamed reward. {rule}"


def _change(change: Change | None) -> str:
    if change is None:
        return ""
    by = f"{change.difference:+.2g} &plusmn; {change.error:.1g}"
    return f"{change.before:.4g} &rarr; {change.after:.4g} <small>({by})</small>"


def _samples(record: RunRecord, grids: int) -> Iterator[str]:
    """A slider over the steps for each kind of picture."""
    for tag, pictures in record.pictures.items():
        chosen = [pictures[i] for i in sorted({round(i) for i in np.linspace(0, len(pictures) - 1, grids)})]
        shown = [picture for picture in map(_webp, chosen) if picture is not None]
        if not shown:
            continue
        images = "".join(
            f'<img src="data:image/webp;base64,{data}" alt="{escape(tag)} at step {step}" data-step="{step}"'
            f"{'' if n == len(shown) - 1 else ' hidden'}>"
            for n, (step, data) in enumerate(shown)
        )
        slider = ""
        if len(shown) > 1:
            slider = f'<input type="range" min="0" max="{len(shown) - 1}" value="{len(shown) - 1}" aria-label="step">'
        yield (
            f'<div class="strip"><p><b>{escape(tag)}</b> step <output>{shown[-1][0]}</output> {slider}'
            f"<small>click the picture for its full size</small></p>{images}</div>"
        )


def _webp(picture: Picture) -> tuple[int, str] | None:
    """(step, base64) of a smaller copy; None if the picture is incomplete."""
    try:
        image = decode_rgb(picture.png)
    except UnusableImage:
        return None
    out = io.BytesIO()
    image.save(out, "WEBP", quality=_QUALITY)
    return picture.step, base64.b64encode(out.getvalue()).decode()


def _time(record: RunRecord) -> str:
    """The phases of a step as bars, and speed over time."""
    rows = [
        [
            escape(name),
            f"{seconds:.3g} s",
            f'<div class="bar"><i style="width:{share:.1%}"></i><span>{share:.0%}</span></div>',
        ]
        for name, seconds, share in phases(record)[:_TOP_PHASES]
    ]
    per = "mean seconds per step" if record.kind == "grpo" else "mean seconds per report"
    table = _table(["phase", per, "share"], rows) if rows else ""
    return table + _charts(record, time_charts(record), 200)


def _faults(record: RunRecord) -> str:
    """What went wrong, what was done about it, and which machines the run used."""
    rows = [[label, value] for label, value in _fault_counts(record)]
    starts = [
        [
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(start.time)),
            str(start.step),
            escape(start.host.get("host", "unknown")),
            escape(start.host.get("processor", "")),
            escape(", ".join(f"{k} {start.host[k]}" for k in ("CPU cores", "memory", "GPUs") if k in start.host)),
            escape(start.host.get("versions", "")),
        ]
        for start in record.starts
    ]
    head = ["started", "at step", "driver's host", "processor", "", "versions"]
    return _table(["", ""], rows, headless=True) + (_table(head, starts) if starts else "")


def _fault_counts(record: RunRecord) -> Iterator[tuple[str, str]]:
    scalars = record.scalars
    if record.starts:
        again = len(record.starts) - 1
        yield "times the run was resumed", str(again)
    for tag, series in scalars.items():
        if tag.startswith("restarts/"):
            ups = np.diff(series.values, prepend=0.0).clip(min=0)
            at = ", ".join(str(int(step)) for step in series.steps[ups > 0][:8])
            yield f"{tag.partition('/')[2]} workers replaced", f"{int(ups.sum())}" + (f" (seen at steps {at})" if at else "")
    for label, tag in (("trajectories dropped by the guard", "guard/dropped"), ("steps skipped", "guard/skipped_steps")):
        if tag in scalars:
            bad = scalars[tag].steps[scalars[tag].values > 0]
            at = ", ".join(str(int(step)) for step in bad[:8]) + (", ..." if len(bad) > 8 else "")
            yield label, f"{int(np.nansum(scalars[tag].values))}" + (f" (at steps {at})" if at else "")
    if "policy/logprob_mismatch_max" in scalars:
        yield "log-prob mismatch, at most", f"{np.nanmax(scalars['policy/logprob_mismatch_max'].values):.1e}"
    odd = [tag for tag, series in scalars.items() if not np.isfinite(series.values).all()]
    if odd:
        yield "curves with values that are not finite", escape(", ".join(sorted(odd)))


def _configuration(record: RunRecord) -> str:
    """The settings that differ from the defaults, and all settings."""
    if not record.config:
        return ""
    rows = [[f"<code>{escape(k)}</code>", escape(str(v)), escape(str(d))] for k, v, d in changed_settings(record)]
    table = _table(["setting", "here", "by default"], rows) if rows else ""
    return f"{table}<details><summary>config.yaml</summary><pre>{escape(yaml_text(record.config))}</pre></details>"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], headless: bool = False) -> str:
    """Cells are HTML."""
    if not rows:
        return ""
    top = "" if headless else f"<thead><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr></thead>"
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table>{top}<tbody>{lines}</tbody></table></div>'
