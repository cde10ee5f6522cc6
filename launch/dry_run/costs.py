"""How many seconds each part of a step takes: measured here with the run's model and data, or derived from FLOPs."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from data.conditions import ConditionSets
from launch.configs.cluster import Role
from launch.configs.grpo import GrpoConfig
from launch.dry_run.simulate import Costs
from launch.sizing.flops import Flops
from launch.sizing.peak import product_peak
from learner.grpo.update import GrpoLearner
from learner.lesson import Lesson
from reward.scorer import build_scorer
from rollout.prefixes import images_to_score
from rollout.sampler import ConditionCache, GroupSampler
from stylevar.adapters import Adapters
from stylevar.allocator import keep_freed_memory
from stylevar.branching import CONTINUATIONS
from stylevar.conditions import encode_batch
from stylevar.contracts import ConditionBatch, PolicyVersion, Trajectories
from stylevar.transformer import StyleVAR
from stylevar.wire import AdapterWire

NETWORK_BYTES_PER_S = 5e9
"""Assumed rate at which adapters and gradients travel between processes."""
DEVICE_BYTES_PER_S = 1e12
"""Assumed memory bandwidth of a device, which limits an optimizer step."""
DRIVER_SECONDS = 0.02
"""Assumed time that the driver spends on the calls and reports of a step."""
PASS_SECONDS = 10.0
"""How long one measured pass may take; of larger units only a part is measured, and scaled up."""
REPEATS = 3

WIRE_BYTES = {"fp32": 4, "bf16": 2}


def costs_from_flops(flops: Flops, config: GrpoConfig, adapters: int, tflops: float) -> Costs:
    """Costs on devices that sustain `tflops`; `adapters` is the number of trainable parameters. Reading counts as free."""
    rate, group = tflops * 1e12, config.rollout.group
    each = flops.per_trajectory(group)
    weights = flops.effective_weights / rate
    # AdamW reads weight, gradient and two moments, and writes all but the gradient.
    optimizer = 7 * 4 * adapters / DEVICE_BYTES_PER_S
    return Costs(
        read=0.0,
        encode=flops.encode / rate,
        encode_again=flops.encode_again / rate,
        sample=group * (each["rollout"] + each["decode"]) / rate,
        score=group * each["reward"] / rate,
        reference=group * each["reference"] / rate,
        update=group * (each.get("credit", 0.0) + each["update forward"] + each["update backward"]) / rate,
        optimizer=optimizer + weights,
        reduce=_reduce_seconds(config, adapters),
        publish=_wire_seconds(config, adapters),
        sync=_wire_seconds(config, adapters) + weights,
        driver=DRIVER_SECONDS,
    )


class Measurement:
    """Times one unit of a run, on the model and the shards that the run will use.

    It attaches adapters to `model` and trains them, so the model serves for nothing else afterwards.
    """

    def __init__(self, config: GrpoConfig, model: StyleVAR, sets: ConditionSets, flops: Flops, device: torch.device) -> None:
        """Raises UserError if the reward's weights are unusable."""
        keep_freed_memory()
        self.config, self.device, self.flops, self.sets = config, device, flops, sets
        self.scorer = build_scorer(config.reward, device, config.learner.reward_detail)
        model.vae.to(device)
        self.model = model.to(device)
        self.adapters = Adapters(model, config.learner.lora_rank, seed=config.seed)
        # One update on the whole unit. Only its time matters, so no mismatch may stop it.
        alone = dataclasses.replace(config.learner, minibatches=1, updates_per_rollout=1, mismatch_limit=math.inf)
        self.learner = GrpoLearner(self.adapters, alone, config.rollout.temperature, steps=config.steps)
        self._rate: float | None = None

    def amount(self, unit: int) -> tuple[int, int]:
        """How many conditions, and trajectories of each, are measured for a unit: all, or as many as are quick enough."""
        group = self.config.rollout.group
        if self._rate is None:
            self._rate = product_peak(self.device, sides=(1024,))  # the phases are slower
        affordable = int(PASS_SECONDS * self._rate / sum(self.flops.per_trajectory(group).values()))
        if affordable < group:
            sharing = 1 if self.config.learner.branch_after is None else CONTINUATIONS
            return 1, max(2 * sharing, affordable // sharing * sharing)
        return min(unit, affordable // group), group

    def costs(self, unit: int, threads: Mapping[Role, int]) -> Costs:
        """Costs of tasks of `unit` conditions: medians over a few passes after a warm-up."""
        config, model, adapters = self.config, self.model, self.adapters
        conditions, group = self.amount(unit)
        before = torch.get_num_threads()
        version, whole = PolicyVersion(0, 0), config.rollout.group / group
        try:
            torch.set_num_threads(threads["rollout"])
            batch = self._read(conditions)
            read = self._seconds(lambda: self._read(conditions))
            encode = self._seconds(lambda: ConditionCache(model, images=config.rollout.decode_batch).get(batch))
            sampler = GroupSampler(model, config.rollout, branch_after=config.learner.branch_after)
            known = sampler.conditions.tokenized(batch)
            state = sampler.conditions.get(batch)
            start = adapters.state()
            with adapters.effective_weights():

                def load() -> None:
                    adapters.load(start)
                    adapters.refresh()

                sync = self._seconds(load)
                detail = config.learner.reward_detail

                def draw() -> tuple[Trajectories, Tensor]:
                    drawn = sampler.sample(batch, config.seed, 0, version, group)
                    return drawn, images_to_score(model.vae, drawn, detail, config.rollout.decode_batch)

                sample = self._seconds(draw)
                trajectories, images = draw()
                torch.set_num_threads(threads["reward"])
                score = self._seconds(lambda: self.scorer.score(images, batch.references, detail))
                scores = self.scorer.score(images, batch.references, detail)
                torch.set_num_threads(threads["learner"])
                encode_again = self._seconds(lambda: encode_batch(model, known))
                publish = self._seconds(lambda: AdapterWire.pack(adapters.state(), config.cluster.wire))
                reference = self._seconds(lambda: self.learner.reference(state, trajectories))
                step = self._seconds(self._optimizer_step)
                weights = self._seconds(adapters.refresh)
                load()
                prepared = self.learner.reference(state, trajectories)
                lesson = Lesson(state, trajectories, prepared, scores.rewards, scores.detail)
                update = self._seconds(lambda: self.learner.update(0, lesson.split(1)), after=load)
        finally:
            torch.set_num_threads(before)
        trainable = sum(p.numel() for p in adapters.parameters())
        return Costs(
            read=read / conditions,
            encode=encode / conditions,
            encode_again=encode_again / conditions,
            sample=whole * sample / conditions,
            score=whole * score / conditions,
            reference=whole * reference / conditions,
            update=whole * max(0.0, update - step) / conditions,
            optimizer=step + weights,
            reduce=_reduce_seconds(config, trainable),
            publish=publish,
            sync=_wire_seconds(config, trainable) + sync,
            driver=DRIVER_SECONDS,
        )

    def _read(self, conditions: int) -> ConditionBatch:
        batch = self.sets.of_step(0, slice(0, conditions))
        return batch.to(self.device)

    def _optimizer_step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.adapters.parameters(), self.learner.config.grad_clip)
        self.learner.optimizer.step()
        self.learner.optimizer.zero_grad(set_to_none=False)

    def _seconds(self, work: Callable[[], object], after: Callable[[], None] = lambda: None) -> float:
        """Median of a few passes after a warm-up; `after` restores the state between them, and is not timed."""
        passed = []
        for _ in range(REPEATS + 1):
            start = self._now()
            work()
            passed.append(self._now() - start)
            after()
        return statistics.median(passed[1:])

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _wire_seconds(config: GrpoConfig, adapters: int) -> float:
    return WIRE_BYTES[config.cluster.wire] * adapters / NETWORK_BYTES_PER_S


def _reduce_seconds(config: GrpoConfig, adapters: int) -> float:
    """A ring all-reduce sends every gradient twice, except for the share that a learner holds itself."""
    learners = config.cluster.learners
    return 2 * (learners - 1) / learners * 4 * adapters / NETWORK_BYTES_PER_S
