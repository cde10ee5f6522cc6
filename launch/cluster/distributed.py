"""A GRPO run over actors on many GPUs or nodes: the `Worker` of `--placement distributed`.

A step is split into units of a few conditions, which move through the roles independently. In the diagram, the right end
of an arrow waits for its left end:

    reader ----> rollout worker ----+----> reward worker ----+
    (images)     (trajectories)     |      (scores)          |
                       ^            |                        v
                       |            +----> learner ----> all learners
                       |                   (reference)   (update, once all units of the step have arrived)
                       |                                     |
                       +-------------------------------------+
                         adapters, before a unit of a newer version is sampled

With `--max-staleness 0` the rollout workers wait for the update of the previous step. With a staleness of s they use that
time to sample up to s steps ahead, with older adapters. A merge or rollback follows an update and discards all samples made
ahead. Held-out conditions stop at the scores.

This process only passes references through Ray's object store. Images and tokens never reach it.

The weights that sample a step do not depend on timing. With a staleness of s, step t is sampled with the weights after step
t - 1 - s, or after the last merge or rollback if that came later. So a lost worker does not change the results.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.conditions import spread
from launch.cluster.failover import Failover
from launch.cluster.learner_group import GroupCall, LearnerGroup
from launch.cluster.places import Placement
from launch.cluster.pool import Calls, Pool, fetch
from launch.cluster.units import Unit, UnitFlow
from launch.cluster.utilisation import RoleUsage
from launch.cluster.weights import Weights
from launch.common.text import parse_size
from launch.configs.cluster import ROLES, split_units
from launch.configs.grpo import GrpoConfig
from launch.rl.reports import HELDOUT_STEP, HeldoutReport, HeldoutTally, StepReport, step_report
from launch.rl.worker import StepAbandoned
from launch.sizing.budget import Choice, choose
from learner.grpo.actor import UpdateInfo, WeightsInfo, older_adapters
from learner.grpo.merging import MergeAction
from learner.grpo.trainer import saved_base
from stylevar.checkpoint import read_architecture
from stylevar.config import ModelConfig
from stylevar.contracts import PolicyVersion, Scores, TrajectoryRows
from stylevar.errors import UserError
from stylevar.policy import PolicySource

PIPELINE = "pipeline.json"
"""File in a checkpoint with the weights' version of every step that was sampled ahead."""


class DistributedRun:
    """One GRPO run's actors. Call `setup` first, then `step`, `evaluate`, `apply`, `save`, as with `ColocatedWorker`."""

    def __init__(self, stop_requested: Callable[[], bool] = lambda: False) -> None:
        """`stop_requested` is polled while a step waits for its rollouts. Ray must already be connected."""
        self._stop_requested = stop_requested
        self._launched: dict[int, list[Unit]] = {}
        self._ahead: dict[int, PolicyVersion] = {}  # versions of steps that were started before the checkpoint

    def setup(self, config: GrpoConfig, checkpoint: Path | None) -> dict[str, Any]:
        """Place and load everything. Raises UserError if the cluster cannot hold the plan, or for unusable files."""
        cluster = config.cluster
        self._calls = Calls(cluster.call_timeout, cluster.start_timeout)
        self._placement = placement = Placement(cluster, config.name, config.device)
        arch = read_architecture(config.init, config.vae, config.revision)
        choice = self._choose(config, arch)
        self._config = config = choice.config
        if checkpoint is None:
            self._config = config = config.with_heldout_sampling(arch.sampling)
        self._source = self._source_of(checkpoint)
        self._learners = LearnerGroup(placement, config, self._calls)
        self._rollout = Pool(
            placement.names("rollout", cluster.rollout_workers),
            lambda number: placement.create("rollout", number),
            self._set_up_rollout,
            self._calls,
            cluster.max_restarts,
            lambda number: not placement.is_lost(("rollout", number)),
        )
        self._reward = Pool(
            placement.names("reward", cluster.reward_workers),
            lambda number: placement.create("reward", number),
            lambda actor: actor.setup.remote(
                config.reward,
                placement.device,
                placement.threads("reward", config.threads),
                config.learner.reward_detail,
            ),
            self._calls,
            cluster.max_restarts,
            lambda number: not placement.is_lost(("reward", number)),
        )
        self._pools = [self._rollout, self._reward]
        members = {"rollout": self._rollout.members, "reward": self._reward.members, "learner": self._learners.members}
        self._usage = RoleUsage(config.name, members, {"rollout": self._rollout, "reward": self._reward})
        self._weights = Weights(self._rollout, self._calls, cluster.check_weights, self._usage.synced)
        self._failover = Failover(placement, self._rollout, self._reward, self._learners)
        self._rollout.start()
        self._reward.start()
        facts = self._start_learners(checkpoint)
        # The learners have loaded the model, so they know its image size.
        self._reader = self._start_reader(facts.pop("image_size"), facts.pop("vae"))
        in_turn = placement.device == "cpu" and placement.crowded(config.threads)
        detail = config.learner.reward_detail
        self._flow = UnitFlow(self._reader, self._rollout, self._reward, self._learners, self._weights.sync, in_turn, detail)
        self._until(lambda: all(pool.ready for pool in self._pools))
        sizes = {f"{name} conditions": size for name, size in self._reader.facts.items()}
        workers = f"{cluster.rollout_workers} rollout, {cluster.reward_workers} reward, {cluster.learners} learner"
        return {"device": placement.device, "workers": workers, **facts, **sizes, **choice.facts()}

    def settings(self) -> GrpoConfig:
        """The run's settings, with the values that `setup` has chosen where they were open."""
        return self._config

    def restart(self, checkpoint: Path | None) -> None:
        """Recover from `LearnerLost`: start new learners with the weights and versions of `checkpoint` (None: the start)."""
        self._learners.kill()
        self._learners.restarts += 1
        source = self._source_of(checkpoint)
        for units in self._launched.values():
            for unit in units:
                unit.abandon()
        other_base = source.base != self._source.base
        self._source = source
        # Workers must load their base again only if they replayed merges that no longer count, or if the base has changed.
        if self._weights.restart(source.version) or other_base:
            self._rollout.renew()
        self._start_learners(checkpoint)

    def step(self, step: int) -> StepReport:
        """Sample, score and learn. Raises StepAbandoned if a stop is requested before the update."""
        start = time.perf_counter()
        units = self._sample_and_score(step)
        self._sample_ahead(step)
        sampled = time.perf_counter()
        staleness = self._weights.version.updates - units[0].version.updates
        infos = self._update(step, units)
        seconds = {"time/step": time.perf_counter() - start, "time/wait": sampled - start}
        seconds["time/update"] = seconds["time/step"] - seconds["time/wait"]
        return self._report(infos, seconds, staleness)

    def evaluate(self, name: str, conditions: int | None = None) -> HeldoutReport:
        """Score `conditions` (all by default) of the held-out set `name` with the newest weights and fixed seeds."""
        monitor = self._config.monitor
        chosen = spread(self._reader.facts[name], conditions)
        size = monitor.eval_unit
        parts = [chosen[at : at + size] for at in range(0, len(chosen), size)]
        units = [
            Unit(HELDOUT_STEP, number, ("pick", (name, part)), self._weights.version, group=monitor.eval_group)
            for number, part in enumerate(parts)
        ]
        for unit in units:
            self._flow.start(unit)
        self._until(lambda: all(unit.done for unit in units))
        tally = HeldoutTally(len(chosen), monitor.image_conditions)
        for unit in units:
            scores = fetch(unit.scores_ref)
            if wanted := tally.add(unit.keys, scores):  # fetch only units with a condition to draw
                batch, images = fetch([unit.batch_ref, unit.images_ref])
                tally.add_pictures(wanted, batch, images, scores.rewards)
        return tally.report()

    def apply(self, action: MergeAction) -> None:
        """Carry out what the merge controller decided. Samples made ahead with the old weights are discarded."""
        call = self._learners.call(f"the {action.value}", "apply", action, self._hashed, returns=3)
        infos: list[WeightsInfo] = self._wait(call)
        if not action.changes_weights:
            return
        snapshot, adapters, _ = call.references[0]
        for units in self._launched.values():
            for unit in units:
                unit.abandon()
        self._launched = {}
        self._weights.take(adapters, infos, snapshot if action.merges else None)
        self._weights.keep_only([])

    def save(self, folder: Path, base: str) -> None:
        """Write everything that the run needs to continue into an existing folder; `base` names the location of its base."""
        ahead = {step: units[0].version for step, units in sorted(self._launched.items())}
        weights = self._weights
        older = {version: [weights.adapters[version]] for version in ahead.values() if version != weights.version}
        call = self._learners.call_first("a checkpoint", "save", folder.resolve(), base, older)
        self._wait(call)
        (folder / PIPELINE).write_text(json.dumps({str(step): list(version) for step, version in ahead.items()}) + "\n")

    def save_base(self, folder: Path) -> None:
        """Write the base model, without the adapters, into an existing folder."""
        self._wait(self._learners.call_first("saving the base", "save_base", folder.resolve()))

    def save_policy(self, folder: Path) -> None:
        """Write the current policy, adapters baked in, into an existing folder."""
        self._wait(self._learners.call_first("saving the policy", "save_policy", folder.resolve()))

    def summary(self) -> str:
        """A table of how busy each role was."""
        return self._usage.table(self._restarts()) + "\n"

    def close(self) -> None:
        """End all actors."""
        if hasattr(self, "_placement"):
            self._placement.remove()

    @property
    def _hashed(self) -> bool:
        return self._config.cluster.check_weights

    def _restarts(self) -> dict[str, int]:
        return {
            "rollout": self._rollout.restarts,
            "reward": self._reward.restarts,
            "learner": self._learners.restarts,
        }

    def _choose(self, config: GrpoConfig, arch: ModelConfig) -> Choice:
        """Choose how much to compute at once: the same for all workers of a role, limited by their smallest device."""
        budgets = self._placement.free_memory()
        if config.memory_budget is not None:
            budgets = dict.fromkeys(ROLES, parse_size(config.memory_budget))
        choice = choose(config, arch, budgets, self._placement.device == "cuda")
        if choice.shortage:
            raise UserError(choice.shortage)
        return choice

    def _source_of(self, checkpoint: Path | None) -> PolicySource:
        source = self._config.policy_source()
        if checkpoint is None:
            return source
        base, version = saved_base(checkpoint)
        return dataclasses.replace(source, base=None if base is None else str(Path(base).resolve()), version=version)

    def _set_up_rollout(self, actor: Any) -> Any:
        """Have a rollout worker load the run's base. `restart` may have changed the base since the worker was created."""
        config, placement = self._config, self._placement
        sampling = (config.rollout, config.heldout_sampling())
        threads, learner = placement.threads("rollout", config.threads), config.learner
        needs = (learner.reward_detail, learner.branch_after)
        return actor.setup.remote(self._source, *sampling, placement.device, threads, *needs)

    def _start_reader(self, image_size: int, vae: str) -> Pool:
        """Start an actor that reads conditions: images of this size, and tokens of this VQ-VAE."""
        config = self._config
        order = config.conditions, config.seed
        reader = Pool(
            ["reader"],
            lambda _: self._placement.create_reader(),
            lambda actor: actor.setup.remote(
                config.condition_patterns(), image_size, vae, *order, config.reward.target_term
            ),
            self._calls,
            config.cluster.max_restarts,
        )
        self._pools.insert(0, reader)
        reader.start()
        return reader

    def _start_learners(self, checkpoint: Path | None) -> dict[str, Any]:
        """Start the learners and make their weights the run's current version. Returns facts about the model."""
        facts = self._wait(self._learners.start(self._source))[0]
        if self._config.cluster.learners > 1:
            address = self._wait(self._learners.call_first("joining", "address"))[0]
            self._wait(self._learners.join(address))
        self._launched, self._ahead = {}, {}
        if checkpoint is not None:
            self._wait(self._learners.restore(checkpoint.resolve()))
        call = self._learners.call("reading the weights", "weights", self._hashed, returns=2)
        infos = self._wait(call)
        self._weights.restart(self._source.version)
        self._weights.take(call.references[0][0], infos)
        if checkpoint is not None:
            self._load_pipeline(checkpoint.resolve())
        return facts

    def _load_pipeline(self, checkpoint: Path) -> None:
        """Restore the weights of steps that were started before the checkpoint: they are sampled with the same weights."""
        file = checkpoint / PIPELINE
        for step, values in json.loads(file.read_text()).items() if file.is_file() else ():
            version = PolicyVersion(*values)
            self._ahead[int(step)] = version
            if version not in self._weights.adapters:
                path = older_adapters(checkpoint, version)
                self._weights.adapters[version] = self._learners.first.actor.read_older.remote(path)

    def _launch(self, step: int) -> None:
        """Queue the units of a step for sampling with the current weights, unless they are already queued."""
        if step in self._launched:
            return
        config, version = self._config, self._ahead.pop(step, self._weights.version)
        at_once = config.rollout.at_once(config.conditions)
        units: list[Unit] = []
        for minibatch, cuts in enumerate(
            split_units(config.conditions, config.learner.minibatches, config.cluster, at_once)
        ):
            for position, rows in enumerate(cuts):
                learner = position % config.cluster.learners
                units.append(Unit(step, len(units), ("of_step", (step, rows)), version, learner, minibatch=minibatch))
        self._launched[step] = units
        for unit in units:
            self._flow.start(unit)

    def _sample_and_score(self, step: int) -> list[Unit]:
        """Wait until all units of a step are sampled and scored and have their reference log-probs. Returns the units."""
        self._launch(step)
        units = self._launched[step]
        self._until(lambda: all(unit.done for unit in units), abandon=True)
        return units

    def _sample_ahead(self, step: int) -> None:
        """Start sampling the steps after `step`, as far as the staleness allows."""
        for later in range(step + 1, min(step + self._config.cluster.max_staleness, self._config.steps - 1) + 1):
            self._launch(later)

    def _update(self, step: int, units: list[Unit]) -> list[UpdateInfo]:
        """Have all learners learn from their units. Rollouts of later steps continue during the update."""

        def share(rank: int) -> list[Any]:
            numbers = range(self._config.learner.minibatches)
            mine = [[u for u in units if u.learner == rank and u.minibatch == number] for number in numbers]
            scores = [unit.scores_ref for some in mine for unit in some]
            return [step, [[unit.number for unit in some] for some in mine], self._hashed, *scores]

        call = self._learners.call_each(f"the update of step {step}", "update", share, returns=2)
        infos: list[UpdateInfo] = self._wait(call)
        self._weights.take(call.references[0][0], infos, updated=True)
        del self._launched[step]
        self._weights.keep_only([some[0].version for some in self._launched.values()])
        return infos

    def _report(self, infos: list[UpdateInfo], seconds: dict[str, float], staleness: int) -> StepReport:
        """The report of a step, from the learners' results, the times and the workers' load."""
        numbered = sorted((pair for info in infos for pair in info.rows), key=lambda pair: pair[0])
        rows = TrajectoryRows.join([rows for _, rows in numbered])
        speed = {"throughput/trajectories_per_s": rows.rewards.numel() / seconds["time/step"]}
        usage = self._usage.metrics(staleness, self._restarts())
        assert infos[0].metrics is not None
        scores = Scores(rows.rewards, dict(rows.components))
        return step_report(scores, rows, infos[0].metrics, {**seconds, **speed, **usage})

    def _wait(self, call: GroupCall) -> list[Any]:
        self._until(lambda: call.done)
        return call.infos

    def _until(self, done: Callable[[], bool], abandon: bool = False) -> None:
        """Keep all actors working until `done`."""
        while not done():
            for pool in self._pools:
                pool.feed()
            if abandon and self._stop_requested():
                raise StepAbandoned
            self._calls.poll()
            self._failover.look()
