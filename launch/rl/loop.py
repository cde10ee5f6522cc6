"""The GRPO training loop: a short driver over a worker. Images and tokens never pass through it."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from launch.common.stop import StopRequest
from launch.configs.grpo import GrpoConfig
from launch.rl.heldout import not_finite, save_scores, save_values
from launch.rl.reports import HeldoutReport
from launch.rl.worker import StepAbandoned, Worker
from launch.run.run_folder import RunFolder
from launch.run.telemetry import Telemetry
from learner.grpo.merging import MergeAction, MergeController
from stylevar.contracts import StepMetrics


@dataclass
class Progress:
    """What the driver itself has to remember: steps done, merges done, the best held-out score, the controller."""

    controller: MergeController
    steps: int = 0
    merges: int = 0
    best: float | None = None

    def save(self, path: Path) -> None:
        state = {"steps": self.steps, "merges": self.merges, "best": self.best, "controller": self.controller.state_dict()}
        path.write_text(json.dumps(state, indent=2) + "\n")

    def load(self, path: Path) -> None:
        state = json.loads(path.read_text())
        self.controller.load_state_dict(state.pop("controller"))
        self.steps, self.merges, self.best = state["steps"], state["merges"], state["best"]


def train(
    config: GrpoConfig, worker: Worker, run: RunFolder, telemetry: Telemetry, progress: Progress, stop: StopRequest
) -> bool:
    """Run the steps that are left; False if a signal ended them early (then a checkpoint was written)."""
    bar = tqdm(total=config.steps, initial=progress.steps, desc=config.name, unit="step", dynamic_ncols=True)
    with bar, stop:
        for step in range(progress.steps, config.steps):
            try:
                report = worker.step(step)
            except StepAbandoned:
                if progress.steps not in run.steps():
                    checkpoint(worker, run, telemetry, progress)
                return False
            metrics = dict(report.metrics)
            heldout = None
            if (step + 1) % config.monitor.eval_every == 0:
                scores = worker.evaluate("heldout", config.monitor.eval_conditions)
                save_values(run.path, "heldout", step + 1, scores)
                heldout = float(scores.rewards.mean())
                metrics["reward/heldout"] = heldout
                metrics |= {f"heldout/{name}": float(value.mean()) for name, value in scores.components.items()}
                telemetry.image_grid(step, "heldout/samples", scores.grid)
            actions = progress.controller.update(step, metrics["reward/mean"], metrics["kl/raw"], heldout)
            for action in actions:
                worker.apply(action)
                if action.merges:
                    progress.merges += 1
                    with run.merge(progress.merges) as folder:
                        worker.save_base(folder)
            metrics |= progress.controller.metrics()
            metrics |= {f"merge/event/{action.value}": 1.0 for action in actions if action.changes_weights}
            telemetry.scalars(step, metrics)
            telemetry.trajectories(step, report.rows)
            progress.steps = step + 1
            is_best = heldout is not None and (progress.best is None or heldout > progress.best)
            if is_best:
                progress.best = heldout
            done = stop.requested or progress.steps == config.steps
            if done or is_best or progress.steps % config.monitor.checkpoint_every == 0:
                checkpoint(worker, run, telemetry, progress)
                if is_best:
                    run.mark_best(progress.steps)
            tqdm.write(step_line(step, metrics, actions))
            if (missing := not_finite(report.rows.rewards)) is not None:
                tqdm.write(f"warning: step {step + 1}: {missing}, and their groups teach nothing: check --reward")
            bar.set_postfix_str(f"reward {metrics['reward/mean']:.3f} KL {metrics['kl/raw']:.3f}", refresh=False)
            bar.update()
            if stop.requested:
                return progress.steps == config.steps
    return True


def checkpoint(worker: Worker, run: RunFolder, telemetry: Telemetry, progress: Progress) -> None:
    """Everything the run needs to go on, as a folder that appears whole or not at all."""
    telemetry.flush()
    base = f"merges/{run.merge_path(progress.merges).name}" if progress.merges else "init"
    with run.checkpoint(progress.steps) as folder:
        worker.save(folder, base)
        progress.save(folder / "progress.json")
        (folder / "run_config.yaml").write_text(run.config.read_text())


def score_heldout(
    config: GrpoConfig, worker: Worker, run: RunFolder, telemetry: Telemetry, step: int
) -> dict[str, HeldoutReport]:
    """Score all conditions of every held-out set, and keep the scores in the run's folder."""
    reports = {}
    for name in config.heldout_sets:
        report = worker.evaluate(name)
        save_scores(run.path, name, step, report)
        if (missing := not_finite(report.rewards)) is not None:
            print(f"warning: {name}: {missing}, so that no gain can be told: check --reward", file=sys.stderr)
        telemetry.scalars(step, {f"{name}_full/{k}": float(v.mean()) for k, v in report.components.items()})
        telemetry.scalars(step, {f"{name}_full/reward": float(report.rewards.mean())})
        telemetry.image_grid(step, f"{name}_full/samples", report.grid)
        reports[name] = report
    return reports


def step_line(step: int, metrics: StepMetrics, actions: list[MergeAction]) -> str:
    """One readable line about a step."""
    parts = [
        f"step {step + 1:5d}",
        f"reward {metrics['reward/mean']:7.4f} (ema {metrics.get('reward/ema', math.nan):7.4f})",
        f"KL {metrics['kl/raw']:7.4f}",
        f"grad {metrics['grad/norm']:6.3f}",
        f"{metrics['time/step']:5.1f} s",
    ]
    if "reward/heldout" in metrics:
        parts.append(f"held-out {metrics['reward/heldout']:7.4f}")
    parts += [a.value for a in actions if a.changes_weights]
    return "  ".join(parts)
