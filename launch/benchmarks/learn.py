"""How much different methods or settings of GRPO learn in equal time: `python launch/bench.py learn`."""

from __future__ import annotations

import json
import math
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import ray
from annotated_types import Ge

from data.shards import TripletShards, expand_shards
from launch.benchmarks.gains import FinishedRun, Learned, markdown, summarise, to_json
from launch.benchmarks.learn_plot import draw
from launch.benchmarks.variants import Variant, read_variants
from launch.cluster.start import start_worker
from launch.common.commands import lasting, loss_warning
from launch.common.stop import StopRequest
from launch.common.text import duration
from launch.configs.grpo import GrpoConfig, load_config
from launch.configs.io import to_plain
from launch.rl.run import PROGRAM, execute, report
from launch.run.resume import NothingLeft, check_steps
from launch.run.run_folder import find_resume, finished_at, flat
from launch.run.run_lock import only_writer
from launch.run.saving import saving
from stylevar.atomic import file_aside
from stylevar.bounds import check_bounds
from stylevar.errors import UserError
from stylevar.text import check_path

WARM_UP, TIMED = 1, 5
"""Steps that are run to see how long one takes, and then thrown away. The first is not timed."""


@dataclass(frozen=True)
class Plan:
    """What the runs of a variant share. `expected`: seconds that their steps should take; None if no step was timed."""

    name: str
    flags: str
    config: GrpoConfig
    expected: float | None

    def with_seed(self, seed: int) -> GrpoConfig:
        """The settings of one run."""
        return replace(self.config, name=f"{self.name}-seed{seed}", seed=seed)


@dataclass(frozen=True)
class Learn:
    """Compare variants of GRPO by their held-out gain after equal training time, over several seeds."""

    variants: tuple[str, ...] = ("trajectory", "gradient")
    """What to compare. Each is a method of --credit, or a name and flags of launch/grpo.py, as in
    "slow: --credit gradient --lr 1e-4". "all: FLAGS" gives flags to all variants."""
    out: Path = Path("runs/learn")
    """Folder of runs and results. The same command continues an interrupted comparison and repeats no finished run."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each variant is trained once with each seed."""
    seconds: Annotated[float, Ge(0)] = 300.0
    """Training time per run, without held-out scoring; 0 for no limit. A few timed steps turn it into a number of steps."""
    trajectories: Annotated[int, Ge(0)] = 0
    """Trajectories that a run may sample for training; 0 for no limit."""
    points: Annotated[int, Ge(1)] = 4
    """How often each run scores its held-out conditions after the start, evenly spread over its steps."""
    eval_conditions: Annotated[int, Ge(0)] = 0
    """Held-out conditions scored during training; 0 for all. All are scored at the start and the end."""
    eval_group: Annotated[int, Ge(1)] = 4
    """Samples per held-out condition."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"--seeds {' '.join(map(str, self.seeds))}: give one or more, each once")

    def run(self) -> None:
        """Plan all variants, train them one after the other, and write the results after every run."""
        if (warning := loss_warning(self.out)) is not None:
            print(warning, file=sys.stderr)
        check_path(self.out, "--out", utf8=True)
        variants = read_variants(self.variants)
        for variant in variants:
            for patterns in variant.config.condition_patterns().values():
                expand_shards(patterns)
        plans = [self._plan(variant) for variant in variants]
        # Seed by seed: a slow hour of the machine then hits all variants, and there is a first comparison early.
        runs = [(plan, seed) for seed in self.seeds for plan in plans]
        for number, (plan, seed) in enumerate(runs, 1):
            print(f"run {number} of {len(runs)}: {plan.name}, seed {seed}, {plan.config.steps} steps", flush=True)
            if train(plan.with_seed(seed)) or number == len(runs):
                text = self._write([summary for p in plans if (summary := self._summary(p, plans[0])) is not None])
        print(text)
        print(f"table and picture: {lasting(self.out)}/learn.md, learn.json, learn.png")

    def _plan(self, variant: Variant) -> Plan:
        """The variant's plan, which stays once a run has begun, so that all seeds have the same number of steps."""
        file = self.out / "plans" / f"{variant.name}.json"
        usual = replace(variant.config, runs=self.out / "runs", name=variant.name)
        asked = self._asked(variant)
        kept = self._kept(file, variant.name, asked)
        if kept is None:
            steps, step_seconds = self._steps(variant, usual)
            kept = {"asked": asked, "steps": steps, "step_seconds": step_seconds}
            write(file, json.dumps(kept, indent=2) + "\n")
        steps, step_seconds = kept["steps"], kept["step_seconds"]
        count = self.eval_conditions or len(TripletShards(expand_shards(usual.heldout)))
        monitor = replace(
            usual.monitor, eval_every=math.ceil(steps / self.points), eval_conditions=count, eval_group=self.eval_group
        )
        expected = None if step_seconds is None else steps * step_seconds
        return Plan(variant.name, variant.flags, replace(usual, steps=steps, monitor=monitor), expected)

    def _kept(self, file: Path, name: str, asked: dict[str, Any]) -> dict[str, Any] | None:
        """The plan in `file`. None if there is none, or if it is for other settings and no run has begun with it.

        Raises UserError if runs have begun with other settings.
        """
        if not file.is_file():
            return None
        kept = json.loads(file.read_text())
        settings = dict.fromkeys([*asked, *kept["asked"]])
        changed = [s for s in settings if s not in asked or kept["asked"].get(s) != asked[s]]
        if not changed:
            return kept
        if not any((self.out / "runs").glob(f"{name}-seed*/config.yaml")):
            return None
        said = ", ".join(setting.removeprefix("settings.") for setting in changed)
        raise UserError(
            f"{file}: the runs of {name} have begun with other settings ({said}): choose another --out, or rename the "
            "variant"
        )

    def _asked(self, variant: Variant) -> dict[str, Any]:
        """All settings that the variant's runs depend on. Their folder is not one of them, so that it can be moved."""
        settings = to_plain(replace(variant.config.absolute(), runs=Path(), name=variant.name))
        budget = {} if variant.has_steps else {"seconds": self.seconds, "trajectories": self.trajectories}
        scored = {"points": self.points, "eval_conditions": self.eval_conditions, "eval_group": self.eval_group}
        return flat({"settings": settings, **budget, **scored})

    def _steps(self, variant: Variant, config: GrpoConfig) -> tuple[int, float | None]:
        """The number of steps per run, and the seconds of one step if it had to be timed."""
        if variant.has_steps:
            return config.steps, None
        step_seconds = None
        if self.seconds:
            print(f"timing a step of {variant.name}", flush=True)
            step_seconds = time_step(config)
        return steps_within(variant, self.seconds, self.trajectories, step_seconds), step_seconds

    def _summary(self, plan: Plan, first: Plan) -> Learned | None:
        """What a variant has learned in its finished runs; None if there are none."""
        runs, reference = self._finished(plan), {} if plan is first else self._finished(first)
        return summarise(plan.name, plan.flags, plan.expected, runs, reference) if runs else None

    def _finished(self, plan: Plan) -> dict[int, FinishedRun]:
        """The variant's finished runs by seed."""
        configs = {seed: plan.with_seed(seed) for seed in self.seeds}
        paths = {seed: config.runs / config.name for seed, config in configs.items()}
        return {seed: FinishedRun.read(path) for seed, path in paths.items() if finished_at(path) == plan.config.steps}

    def _write(self, variants: list[Learned]) -> str:
        """Table and picture; returns the table."""
        text = markdown(variants)
        write(self.out / "learn.md", text)
        write(self.out / "learn.json", to_json(variants))
        draw(variants, self.out / "learn.png")
        return text


def steps_within(variant: Variant, seconds: float, trajectories: int, step_seconds: float | None) -> int:
    """The most steps within both limits, where 0 means no limit. UserError if there is no limit, or not one step fits."""
    config = variant.config
    each = config.conditions * config.rollout.group
    limits = [int(seconds / step_seconds)] if seconds and step_seconds else []
    limits += [trajectories // each] if trajectories else []
    if not limits:
        raise UserError(f"{variant.name} has no end: give --seconds or --trajectories, or the variant its own --steps")
    if min(limits) < 1:
        taken = "" if step_seconds is None else f"{duration(step_seconds)} and "
        raise UserError(
            f"--seconds {seconds:g} --trajectories {trajectories}: give more, since one step of {variant.name} takes "
            f"{taken}{each} trajectories"
        )
    return min(limits)


def time_step(config: GrpoConfig) -> float:
    """Median seconds of a few steps, of which nothing is kept."""
    worker = start_worker(config, StopRequest())
    try:
        worker.setup(config, None)
        seconds = [worker.step(step).metrics["time/step"] for step in range(WARM_UP + TIMED)]
    finally:
        worker.close()
        ray.shutdown()
    return statistics.median(seconds[WARM_UP:])


def train(config: GrpoConfig) -> bool:
    """Train a run to its end; False if it was finished already. Exits with 130 if a signal ended it early, as `grpo.py`."""
    path = config.runs / config.name
    point = find_resume("auto", config.runs, config.name)
    if point is not None:
        config = replace(load_config(path / "config.yaml"), name=config.name, runs=config.runs)
        try:
            check_steps(point, config.steps)
        except NothingLeft:
            return False
    stop = StopRequest()
    with only_writer(path):
        try:
            run = execute(config, point, start_worker(config, stop), stop)
        except SystemExit:
            print("or repeat the command of the comparison, which continues this run and does those that are left")
            raise
        finally:
            ray.shutdown()
        with saving(run, PROGRAM):
            report(config, run)
    return True


def write(path: Path, text: str) -> None:
    """Write a file, whole or not at all, and make its folder. UserError if that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_aside(path) as aside:
            aside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another --out") from error
