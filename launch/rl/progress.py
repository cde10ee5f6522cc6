"""The progress of a GRPO run, and the console line for each step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType

from learner.grpo.merging import MergeAction, MergeController
from stylevar.contracts import StepMetrics
from stylevar.restoring import EARLIER, restoring
from stylevar.text_files import read_record


@dataclass
class Progress:
    """The driver's own state: steps and merges done, the best held-out score, the number of scorings since then without a
    better one (`flat`), and the merge controller."""

    controller: MergeController
    steps: int = 0
    merges: int = 0
    best: float | None = None
    flat: int = 0

    def scored(self, heldout: float) -> bool:
        """Record a held-out score. Returns whether it is the best so far."""
        is_best = self.best is None or heldout > self.best
        self.best, self.flat = (heldout, 0) if is_best else (self.best, self.flat + 1)
        return is_best

    def save(self, path: Path) -> None:
        state = {name: getattr(self, name) for name in ("steps", "merges", "best", "flat")}
        state["controller"] = self.controller.state_dict()
        path.write_text(json.dumps(state, indent=2) + "\n")

    def load(self, path: Path) -> None:
        number = (int, float, NoneType)
        state = read_record(path, EARLIER, steps=int, merges=int, best=number, controller=dict)
        with restoring(path.parent):
            self.controller.load_state_dict(state["controller"])
        self.steps, self.merges, self.best = state["steps"], state["merges"], state["best"]
        self.flat = state.get("flat", 0)  # older versions did not save it


def step_line(done: int, metrics: StepMetrics, actions: Sequence[MergeAction]) -> str:
    """The console line for the last of `done` steps."""
    average = f" (ema {metrics['reward/ema']:7.4f})" if "reward/ema" in metrics else ""  # none right after an early rollback
    parts = [
        f"step {done:5d}",
        f"reward {metrics['reward/mean']:7.4f}{average}",
        f"KL {metrics['kl/raw']:7.4f}",
        f"grad {metrics['grad/norm']:6.3f}",
        f"{metrics['time/step']:5.1f} s",
    ]
    if "reward/heldout" in metrics:
        parts.append(f"held-out {metrics['reward/heldout']:7.4f}")
    parts += [action.value for action in actions if action.changes_weights]
    return "  ".join(parts)
