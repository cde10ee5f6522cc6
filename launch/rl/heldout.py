"""Held-out scores of a run: saved per condition, and compared before and after training."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from launch.common.grids import condition_titles, draw_table
from launch.rl.reports import HeldoutReport
from reward.statistics import TARGET
from stylevar.atomic import file_aside
from stylevar.errors import UserError
from stylevar.text_files import read_record


def save_scores(run: Path, name: str, step: int, report: HeldoutReport) -> None:
    """`save_values`, and also an .npz with samples of a few conditions by key, and a .png with the grid."""
    save_values(run, name, step, report)
    folder, stem = run / "heldout", _stem(name, step)
    with file_aside(folder / f"{stem}.npz") as aside, aside.open("wb") as file:
        np.savez_compressed(file, samples=report.samples.numpy(), keys=np.array(report.shown))
    _save_picture(report.grid, folder / f"{stem}.png")


def save_values(run: Path, name: str, step: int, report: HeldoutReport) -> None:
    """Write heldout/<name>_<step>.json: the scores of every condition after `step` steps."""
    folder = run / "heldout"
    folder.mkdir(exist_ok=True)
    values = {
        "step": step,
        "keys": list(report.keys),
        "rewards": report.rewards.tolist(),
        "components": {k: v.mean(1).tolist() for k, v in report.components.items()},
    }
    with file_aside(folder / f"{_stem(name, step)}.json") as aside:
        aside.write_text(json.dumps(values) + "\n")


def _stem(name: str, step: int) -> str:
    return f"{name}_{step:08d}"


def _save_picture(grid_u8: Tensor, path: Path) -> None:
    with file_aside(path) as aside:
        Image.fromarray(grid_u8.permute(1, 2, 0).numpy()).save(aside, format="PNG")


@dataclass(frozen=True)
class Comparison:
    """Held-out reward before and after, over n conditions with the same seeds; errors are standard errors."""

    before: float
    after: float
    gain: float
    gain_error: float
    conditions: int
    components: dict[str, tuple[float, float]]

    def lines(self, name: str) -> list[str]:
        """For the console."""
        text = [
            f"{name}: reward {self.before:.4f} before, {self.after:.4f} after; paired difference {self.gain:+.4f} "
            f"+- {self.gain_error:.4f} (standard error over {self.conditions} conditions): {self.verdict}"
        ]
        shown = ", ".join(f"{k} {b:.4f} -> {a:.4f}" for k, (b, a) in self.components.items() if _changes(k))
        return [*text, f"  {shown}"]

    @property
    def verdict(self) -> str:
        """Whether the difference is a gain or a loss, judged by twice its standard error."""
        if math.isnan(self.gain):
            return "unknown, because some rewards are not finite"
        if math.isnan(self.gain_error):
            return "no verdict, because one condition gives no standard error"
        if abs(self.gain) <= 2 * self.gain_error:
            return "neither a gain nor a loss, within twice its error"
        return f"a {'gain' if self.gain > 0 else 'loss'}, above twice its error"


def not_finite(rewards: Tensor) -> str | None:
    """A message with the number of `rewards` that are not finite; None if all are finite."""
    count = int((~rewards.isfinite()).sum())
    return f"{count} of {rewards.numel()} rewards are not finite" if count else None


def _changes(component: str) -> bool:
    """Whether a component differs from the reward and depends on the policy."""
    return component != "total" and not component.startswith(TARGET)


def compare(run: Path, name: str, before: int, after: int) -> Comparison:
    """Compare the scores saved at two steps. Conditions and seeds are the same, so the difference is paired."""
    first, last = (_scores(run, name, step) for step in (before, after))
    if first["keys"] != last["keys"]:
        raise ValueError(f"{name}: the two scorings have different conditions")
    rewards = [torch.tensor(r["rewards"]).mean(1) for r in (first, last)]
    gains = rewards[1] - rewards[0]
    parts = {k: (float(np.mean(first["components"][k])), float(np.mean(v))) for k, v in last["components"].items()}
    error = float(gains.std() / len(gains) ** 0.5)
    return Comparison(float(rewards[0].mean()), float(rewards[1].mean()), float(gains.mean()), error, len(gains), parts)


def before_after(run: Path, name: str, before: int, after: int, condition: Callable[[int], Sequence[Tensor]]) -> Path:
    """Draw two samples before and the same two after beside each condition. Returns the picture's path.

    One row for each condition whose samples both scorings kept. `condition` gives the images of the held-out condition with
    this position: content, style and, if there is one, target.
    """
    first, last = (_samples(run, name, step) for step in (before, after))
    keys = _all_keys(run, name, after)
    count = min(2, *(len(some) for some in last.values()))
    rows = [(condition(keys.index(key)), first[key], last[key]) for key in first if key in last]
    cells = [[*images, *(torch.from_numpy(some[g]) for some in samples for g in range(count))] for images, *samples in rows]
    titles = [*condition_titles(rows[0][0]), *["before"] * count, *["after GRPO"] * count]
    path = run / "before_after.png"
    _save_picture(draw_table(cells, titles), path)
    return path


def _samples(run: Path, name: str, step: int) -> dict[str, NDArray]:
    """The kept samples of a scoring, uint8 [G, 3, H, W], by the key of their condition."""
    file = run / "heldout" / f"{_stem(name, step)}.npz"
    try:
        kept = dict(np.load(file))
        samples = kept["samples"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} cannot be read ({error}), so samples cannot be shown: see the run's report") from error
    # Older versions kept those of the first conditions, without their keys.
    keys = kept["keys"].tolist() if "keys" in kept else _all_keys(run, name, step)[: len(samples)]
    return dict(zip(keys, samples, strict=True))


def _all_keys(run: Path, name: str, step: int) -> list[str]:
    return _scores(run, name, step)["keys"]


def _scores(run: Path, name: str, step: int) -> dict[str, Any]:
    """The scores saved at a step. UserError if they are damaged."""
    file = run / "heldout" / f"{_stem(name, step)}.json"
    return read_record(file, "measure the model with launch/eval.py", keys=list, rewards=list, components=dict)
