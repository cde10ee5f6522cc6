"""All roles in one process, with one copy of the weights. `ColocatedActor` runs this plain class in a Ray actor."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from data.conditions import ConditionSets, spread
from launch.common.cpus import available_cpus
from launch.common.device import choose_device
from launch.common.loading import collector_paused
from launch.configs.cluster import ROLES
from launch.configs.grpo import GrpoConfig
from launch.rl.reports import HELDOUT_STEP, HeldoutReport, HeldoutTally, StepReport, step_report
from launch.run.telemetry import PhaseTimer, memory
from launch.sizing.budget import choose, device_budget
from learner.grpo.merging import MergeAction
from learner.grpo.trainer import Trainer, saved_base
from learner.lesson import Lesson
from reward.scorer import Scorer, build_scorer
from rollout.prefixes import images_to_score
from rollout.sampler import ConditionCache, GroupSampler
from stylevar.allocator import keep_freed_memory
from stylevar.contracts import ConditionBatch, Scores, StepMetrics, TrajectoryRows
from stylevar.errors import UserError
from stylevar.policy import Policy
from stylevar.sampling import CoupledStreams


class ColocatedWorker:
    """One GRPO run's model, data, reward and learner. Call `setup` first, then `step`, `evaluate`, `apply`, `save`."""

    @collector_paused()
    def setup(self, config: GrpoConfig, checkpoint: Path | None) -> dict[str, Any]:
        """Load everything, from `--init` or from a checkpoint, and return facts about the run.

        Raises UserError for anything that a user can fix.
        """
        device = choose_device(config.device)
        keep_freed_memory(scarce=config.scarce_memory(device.type))
        torch.set_num_threads(config.threads or available_cpus())
        budget = device_budget(config, device)
        source = config.policy_source()
        if checkpoint is not None:
            base, version = saved_base(checkpoint)
            source = dataclasses.replace(source, base=base, version=version)
        policy = Policy(source, device)
        choice = choose(config, policy.model.arch, dict.fromkeys(ROLES, budget), device.type == "cuda")
        if choice.shortage:
            raise UserError(choice.shortage)
        self.sets = ConditionSets(
            config.condition_patterns(),
            policy.image_size,
            policy.vae_fingerprint,
            config.conditions,
            config.seed,
            config.reward.target_term,
        )
        config = choice.config
        if checkpoint is None:
            config = config.with_heldout_sampling(policy.model.arch.sampling)
        self.assemble(config, policy, build_scorer(config.reward, device, config.learner.reward_detail))
        if checkpoint is not None:
            self.trainer.load(checkpoint)
        sizes = {f"{name} conditions": size for name, size in self.sets.sizes().items()}
        return {"device": str(device), **policy.describe(), **sizes, **choice.facts()}

    def settings(self) -> GrpoConfig:
        """The run's settings, with the values that `setup` has chosen where they were open."""
        return self.config

    def assemble(self, config: GrpoConfig, policy: Policy, scorer: Scorer) -> None:
        """Build the roles around a policy. This is all that `learn` needs; the rest of `setup` loads the parts."""
        self.config, self.policy, self.scorer = config, policy, scorer
        self.device, self.adapters = policy.device, policy.adapters
        self.adapters.keep_in_place = config.rollout.cuda_graphs
        self.timer = PhaseTimer(torch.cuda.synchronize if self.device.type == "cuda" else None)
        self.conditions = ConditionCache(policy.model, images=config.rollout.decode_batch)
        branch = config.learner.branch_after
        self.sampler = GroupSampler(policy.model, config.rollout, self.conditions, clock=self.timer, branch_after=branch)
        self.trainer = Trainer(policy, config.learner, config.rollout.temperature, self.timer, config.steps)

    def step(self, step: int) -> StepReport:
        """One GRPO step on the conditions that the data order assigns to `step`."""
        with self.timer("data"):
            batch = self.sets.of_step(step).to(self.device)
        return self.learn(step, batch)

    def learn(self, step: int, batch: ConditionBatch) -> StepReport:
        """Sample, score and learn: one GRPO step on the conditions of `batch`, which are on the policy's device."""
        config, timer, detail = self.config, self.timer, self.config.learner.reward_detail
        with timer("condition"):
            state = self.conditions.get(batch)
        with ExitStack() as kept:
            with timer("effective_weights"):
                kept.enter_context(self.adapters.effective_weights())
            with timer("rollout"):
                trajectories = self.sampler.sample(batch, config.seed, step, self.policy.version)
            with timer("decode"):
                images = images_to_score(self.policy.model.vae, trajectories, detail, config.rollout.decode_batch)
            with timer("reward"):
                scores = self.scorer.score(images, batch.references, detail)
            with timer("reference"):
                reference = self.trainer.learner.reference(state, trajectories)
            with timer("update"):
                lesson = Lesson(state, trajectories, reference, scores.rewards, scores.detail)
                result = self.trainer.update(step, lesson.split(config.learner.minibatches))
        rows = TrajectoryRows.of(trajectories, scores, result.advantages, result.kl)
        return step_report(scores, rows, result.metrics, {**self._speed(scores), **memory(self.device)})

    def _speed(self, scores: Scores) -> StepMetrics:
        """Seconds of each phase of the last step, and trajectories per second."""
        seconds = self.timer.take()
        whole = sum(seconds.values())
        return {**seconds, "time/step": whole, "throughput/trajectories_per_s": scores.rewards.numel() / whole}

    def evaluate(self, name: str, conditions: int | None = None) -> HeldoutReport:
        """Score `conditions` (all by default) of the held-out set `name` with fixed seeds, a few of them at a time.

        All policies share the same coupled random numbers, so that differences come mostly from training.
        """
        monitor, version = self.config.monitor, self.policy.version
        chosen = spread(self.sets.sizes()[name], conditions)
        tally = HeldoutTally(len(chosen), monitor.image_conditions)
        sampler = GroupSampler(self.policy.model, self.config.heldout_sampling(), streams=CoupledStreams)
        with self.adapters.effective_weights():
            for start in range(0, len(chosen), monitor.eval_unit):
                batch = self.sets.pick(name, chosen[start : start + monitor.eval_unit]).to(self.device)
                drawn = sampler.sample(batch, self.config.seed, HELDOUT_STEP, version, monitor.eval_group)
                scores = self.scorer.score(drawn.images, batch.references)
                tally.add_pictures(tally.add(batch.keys, scores), batch, drawn.images, scores.rewards)
        return tally.report()

    def apply(self, action: MergeAction) -> None:
        """Carry out what the merge controller decided."""
        self.trainer.apply(action)

    def save_base(self, folder: Path) -> None:
        """Write the base model, without the adapters, into an existing folder."""
        self.trainer.save_base(folder)

    def save_policy(self, folder: Path) -> None:
        """Write the current policy, adapters baked in, into an existing folder."""
        self.trainer.save_policy(folder)

    def save(self, folder: Path, base: str) -> None:
        """Write everything that a run needs to continue into an existing folder; `base` names the location of its base."""
        self.trainer.save(folder, base)

    def fingerprint(self) -> str:
        """A hash of the effective weights."""
        return self.adapters.fingerprint()

    def restart(self, checkpoint: Path | None) -> None:
        """Go back to a checkpoint of this run, or to its start, by loading everything again."""
        self.setup(self.config, checkpoint)

    def summary(self) -> str:
        """Empty: with a single process, the curves already show everything."""
        return ""

    def close(self) -> None:
        """Nothing to do: the process ends with its actor."""
