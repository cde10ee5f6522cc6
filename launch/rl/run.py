"""A GRPO run: the loop over a worker's steps, and the run's life cycle from set-up to report.

Images and tokens never reach this process: they stay with the worker.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from torch import Tensor
from tqdm import tqdm

from data.patterns import expand_shards
from data.shards import TripletShards
from launch.common.commands import continuing, lasting, quoted
from launch.common.stop import STOPPED, Stop, StopRequest
from launch.configs.grpo import PROGRAM, GrpoConfig, load_config
from launch.configs.io import as_kept
from launch.rl.heldout import before_after, compare, not_finite, save_scores, save_values
from launch.rl.progress import Progress, step_line
from launch.rl.reports import HeldoutReport, StepReport
from launch.rl.worker import LearnerLost, StepAbandoned, Worker, WorkerLost
from launch.run.drive import drive
from launch.run.run_folder import ResumePoint, RunFolder, find_resume
from launch.run.saving import saving
from launch.run.telemetry import Telemetry
from learner.grpo.merging import MergeAction, MergeController
from stylevar.contracts import StepMetrics
from stylevar.errors import UserError

PROGRESS = "progress.json"
"""File in a checkpoint with the driver's own state."""


class GrpoRun:
    """A run's worker, folder, curves and progress. See `launch.run.drive.Run` for its life cycle."""

    def __init__(self, config: GrpoConfig, point: ResumePoint | None, worker: Worker) -> None:
        """Set up the worker, then open the run's folder. Raises UserError; a run that cannot start leaves no folder."""
        try:
            facts = worker.setup(config, point.checkpoint if point else None)
        except LearnerLost as lost:
            raise UserError(f"{lost}: the learners could not start, perhaps because memory ran out") from lost
        self.worker, self.config = worker, worker.settings()
        self.folder = self._open(point)
        self.restarts = 0
        print(f"run {lasting(self.folder.path)}: " + ", ".join(f"{name} {value}" for name, value in facts.items()))
        with saving(self.folder, PROGRAM):
            if point is not None:
                self.folder.resume_with(as_kept(self.config), point.step)
            self._go_to(point)

    @property
    def done(self) -> int:
        """Number of completed steps."""
        return self.progress.steps

    def advance(self, stop: Stop) -> bool:
        """Score, train to the end, and score again (True), or train until a stop is requested (False).

        If learners are lost, the run goes back to its last checkpoint, at most `--max-restarts` times.
        """
        while True:
            try:
                finished = self._score_and_train(stop)
            except LearnerLost as lost:
                self._recover(lost)
            else:
                print(self.worker.summary(), end="")
                return finished

    def finish(self) -> Path:
        """Write the trained policy into the run's model folder and return it."""
        with self.folder.final_model(self.done) as folder:
            self.worker.save_policy(folder)
        return self.folder.model

    def close(self) -> None:
        """Flush all reports to disk."""
        self.telemetry.close()

    def _score_and_train(self, stop: Stop) -> bool:
        if self.done == 0:
            print("scoring the held-out conditions before training")
            self._score_all()
            self._score_start()
        if not self._train(stop):
            return False
        print("scoring the held-out conditions after training")
        self._score_all()
        return True

    def _train(self, stop: Stop) -> bool:
        """Do the remaining steps. Returns False if a stop was requested before the last one."""
        config = self.config
        bar = tqdm(total=config.steps, initial=self.done, desc=config.name, unit="step", dynamic_ncols=True)
        with bar, stop:
            while not self._finished:
                step = self.done
                try:
                    report = self.worker.step(step)  # sample, score, reference, learn
                except StepAbandoned:
                    if self.done not in self.folder.steps():
                        self._checkpoint()
                    return False
                heldout = self._score_some(step + 1)
                actions = self._merge_or_roll_back(step, report.metrics, heldout.get("reward/heldout"))
                metrics = {**report.metrics, **heldout, **self._merge_metrics(actions)}
                self.telemetry.scalars(step + 1, metrics)
                self.telemetry.trajectories(step, report.rows)
                self.progress.steps = step + 1
                stopping = stop.requested
                self._keep(heldout.get("reward/heldout"), stopping)
                self._say(report, metrics, actions)
                bar.set_postfix_str(f"reward {metrics['reward/mean']:.3f} KL {metrics['kl/raw']:.3f}", refresh=False)
                bar.update()
                if stopping:
                    break
        if self.done < config.steps and self._finished:
            print(f"no better held-out score {self.progress.flat} times in a row: ending after {self.done} steps")
        return self._finished

    @property
    def _finished(self) -> bool:
        """Whether all steps are done, or the held-out score has been flat for `--stop-when-flat` scorings."""
        patience = self.config.monitor.stop_when_flat
        return self.done >= self.config.steps or 0 < patience <= self.progress.flat

    def _score_some(self, done: int) -> StepMetrics:
        """Score a few held-out conditions if this is due after `done` steps. Returns the scalars."""
        monitor = self.config.monitor
        if done % monitor.eval_every:
            return {}
        scores = self.worker.evaluate("heldout", monitor.eval_conditions)
        self.folder.check_place()
        save_values(self.folder.path, "heldout", done, scores)
        _warn_if_not_finite("heldout", scores.rewards)
        self.telemetry.image_grid(done, "heldout/samples", scores.grid)
        return self._means(scores)

    @staticmethod
    def _means(scores: HeldoutReport) -> StepMetrics:
        components = {f"heldout/{name}": float(value.mean()) for name, value in scores.components.items()}
        return {"reward/heldout": float(scores.rewards.mean()), **components}

    def _score_all(self) -> None:
        """Score all conditions of every held-out set, and save the scores in the run's folder."""
        for name in self.config.heldout_sets:
            report = self.worker.evaluate(name)
            self.folder.check_place()
            save_scores(self.folder.path, name, self.done, report)
            _warn_if_not_finite(name, report.rewards)
            scalars = {f"{name}_full/{part}": float(value.mean()) for part, value in report.components.items()}
            self.telemetry.scalars(self.done, {**scalars, f"{name}_full/reward": float(report.rewards.mean())})
            self.telemetry.image_grid(self.done, f"{name}_full/samples", report.grid)

    def _score_start(self) -> None:
        """Score the untrained policy like the scorings during the run, so that they have something to be compared with."""
        means = self._means(self.worker.evaluate("heldout", self.config.monitor.eval_conditions))
        self.telemetry.scalars(0, means)
        for action in self.progress.controller.begin(means["reward/heldout"]):
            self.worker.apply(action)

    def _merge_or_roll_back(self, step: int, metrics: StepMetrics, heldout: float | None) -> list[MergeAction]:
        """Apply the controller's decisions after a step. A merge saves its new base in the run's folder."""
        learner = self.config.learner
        learned = metrics["guard/skipped_steps"] < learner.updates_per_rollout * learner.minibatches
        actions = self.progress.controller.update(step, metrics["reward/mean"], metrics["kl/raw"], heldout, learned)
        for action in actions:
            self.worker.apply(action)
            if action.merges:
                self.progress.merges += 1
                with self.folder.merge(self.progress.merges) as folder:
                    self.worker.save_base(folder)
        return actions

    def _merge_metrics(self, actions: list[MergeAction]) -> StepMetrics:
        events = {f"merge/event/{action.value}": 1.0 for action in actions if action.changes_weights}
        return {**self.progress.controller.metrics(), **events}

    def _keep(self, heldout: float | None, stopping: bool) -> None:
        """Write a checkpoint if one is due, and mark it if its held-out reward is the best so far."""
        is_best = heldout is not None and self.progress.scored(heldout)
        last = stopping or self._finished
        if last or is_best or self.done % self.config.monitor.checkpoint_every == 0:
            self._checkpoint()
        if is_best:
            self.folder.mark_best(self.done)

    def _checkpoint(self) -> None:
        """Write everything that the run needs to continue, atomically."""
        self.telemetry.flush()
        merges = self.progress.merges
        base = f"merges/{self.folder.merge_path(merges).name}" if merges else "init"
        with self.folder.checkpoint(self.done) as folder:
            self.worker.save(folder, base)
            self.progress.save(folder / PROGRESS)
            (folder / "run_config.yaml").write_text(self.folder.config.read_text())

    def _say(self, report: StepReport, metrics: StepMetrics, actions: list[MergeAction]) -> None:
        """Print a line about the step just completed."""
        tqdm.write(step_line(self.done, metrics, actions))
        if (missing := not_finite(report.rows.rewards)) is not None:
            tqdm.write(f"warning: step {self.done}: {missing}; nothing is learned from their groups: check --reward")

    def _recover(self, lost: LearnerLost) -> None:
        """Restart the learners and rewind the run to the last checkpoint. UserError after `--max-restarts` restarts.

        A failed restart counts too.
        """
        path, allowed = self.folder.path, self.config.cluster.max_restarts
        while self.restarts < allowed:
            self.restarts += 1
            point = find_resume("auto", path.parent, path.name)
            assert point is not None
            print(f"{lost}: restarting the learners from step {point.step}", file=sys.stderr)
            try:
                self.worker.restart(point.checkpoint)
            except LearnerLost as again:
                lost = again
            else:
                self.telemetry.close()
                self._go_to(point)
                return
        raise UserError(
            f"{lost}, and the learners were restarted --max-restarts {allowed} times already: fix the "
            f"cause, then continue with {quoted('--resume', lasting(path))}"
        )

    def _open(self, point: ResumePoint | None) -> RunFolder:
        path, keep = self.config.runs / self.config.name, self.config.monitor.keep_checkpoints
        return RunFolder.open(path, keep) if point else RunFolder.create(path, as_kept(self.config), keep)

    def _go_to(self, point: ResumePoint | None) -> None:
        """Move to `point`, or to the start. Removes later steps from the folder, because they will be repeated."""
        self.progress = Progress(MergeController(self.config.merge))
        if point is not None:
            if point.checkpoint is not None:
                self.progress.load(point.checkpoint / PROGRESS)
            self.folder.rewind(self.done, self.progress.merges)
        self.telemetry = Telemetry(self.folder, self.done)


def _warn_if_not_finite(name: str, rewards: Tensor) -> None:
    """Say so if some rewards of the held-out set `name` are not finite."""
    if (missing := not_finite(rewards)) is not None:
        tqdm.write(f"warning: {name}: {missing}, so neither is their mean: check --reward", file=sys.stderr)


def execute(config: GrpoConfig, point: ResumePoint | None, worker: Worker, stop: StopRequest | None = None) -> RunFolder:
    """Run from set-up to the final model, and close the worker. Exits with 130 if a signal ended the run early."""
    try:
        with telling_how_to_go_on(point.run if point else None):
            run = GrpoRun(config, point, worker)
        try:
            with telling_how_to_go_on(run.folder.path):
                model = drive(run, PROGRAM, stop or StopRequest())
        except KeyboardInterrupt:  # outside the training steps, or a second Ctrl-C
            model = None
        if model is None:
            stopped(run.folder)
    finally:
        worker.close()
    return run.folder


@contextmanager
def telling_how_to_go_on(run: Path | None) -> Iterator[None]:
    """Turn the final loss of a worker into a UserError that says how to continue; `run` is None if nothing is saved."""
    try:
        yield
    except WorkerLost as lost:
        how = f"continue with: {continuing(PROGRAM, run)}" if run else "nothing was saved yet: start again"
        raise UserError(f"{lost}; {how}") from lost


def stopped(run: RunFolder) -> NoReturn:
    """Print the command that continues the run, and exit."""
    print(f"stopped; continue with: {continuing(PROGRAM, run.path)}")
    sys.exit(STOPPED)


def report(config: GrpoConfig, run: RunFolder) -> None:
    """Print the run's gain, and draw samples before and after."""
    last, sampling = run.steps()[-1], load_config(run.config).heldout_sampling()
    for name in config.heldout_sets:
        print("\n".join(compare(run.path, name, 0, last).lines(name)))
    print(f"sampled      before and after at temperature {sampling.temperature:g}: a lower one alone raises the reward")
    shards = TripletShards(expand_shards(config.heldout), needs_targets=False)

    def condition(at: int) -> list[Tensor]:
        row = shards.usable(at)
        return [image for image in (row.content, row.style, row.target) if image is not None]

    picture = before_after(run.path, "heldout", 0, last, condition)
    print(f"picture      {lasting(picture)}")
    print(f"model        {lasting(run.path / 'model')}")
    print(f"run          {lasting(run.path)}")
    print(f"TensorBoard  {quoted('tensorboard', '--logdir', lasting(run.path.parent))}")
