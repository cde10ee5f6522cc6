"""All roles in one process, over one copy of the weights: a plain class, of which `grpo.py` makes an actor."""

from __future__ import annotations

import dataclasses
import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.order import EpochOrder, batch_at
from data.shards import TripletShards, expand_shards
from launch.allocator import keep_freed_memory
from launch.config import GrpoConfig
from launch.device import choose_device
from launch.grids import GridRow, draw_grid, reward_captions
from launch.telemetry import PhaseTimer, TrajectoryRows, memory
from learner.merge import MergeAction
from learner.update import GrpoLearner
from reward.scorer import build_scorer
from rollout.sampler import ConditionCache, GroupSampler
from stylevar.adapters import Adapters, AdapterState
from stylevar.checkpoint import MODEL_FILE, load_into, load_pair, read_model_state, save_model
from stylevar.contracts import ConditionBatch, PolicyVersion, StepMetrics
from stylevar.errors import UserError
from stylevar.sampling import CoupledStreams, trajectory_seed

HELDOUT_STEP = -1  # held-out trajectories use the same random numbers at every step


@dataclass(frozen=True)
class StepReport:
    """What one step leaves for the driver: scalars and one row per trajectory. No images, no tokens."""

    metrics: StepMetrics
    rows: TrajectoryRows


@dataclass(frozen=True)
class HeldoutReport:
    """Scores of held-out conditions: rewards fp32 [B, G], components {name: [B, G]}, and samples of the first few.

    `samples` uint8 [n, G, 3, H, W]; `grid` uint8 [3, H', W'] shows them beside content, style and target.
    """

    keys: tuple[str, ...]
    rewards: Tensor
    components: dict[str, Tensor]
    samples: Tensor
    grid: Tensor


class ColocatedWorker:
    """One GRPO run's model, data, reward and learner. `setup` first; then `step`, `evaluate`, `apply`, `save`."""

    def setup(self, config: GrpoConfig, checkpoint: Path | None) -> dict[str, Any]:
        """Load everything, from `--init` or from a checkpoint, and return facts about the run.

        Raises UserError for anything that a user can set right.
        """
        keep_freed_memory()
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config = config
        self.device = choose_device(config.device)
        self.timer = PhaseTimer(torch.cuda.synchronize if self.device.type == "cuda" else None)
        vae, model = load_pair(config.init, config.vae, config.alphas, config.revision)
        size = model.arch.image_size
        fingerprint = vae.fingerprint()

        def read(pattern: str) -> TripletShards:
            return TripletShards(expand_shards([pattern]), image_size=size, vae=fingerprint)

        self.train_set, self.heldout_sets = read(config.shards), {"heldout": read(config.heldout)}
        if config.novel is not None:
            self.heldout_sets["novel"] = read(config.novel)
        if len(self.train_set) < config.conditions:
            raise UserError(f"--conditions {config.conditions}: {config.shards} holds only {len(self.train_set)} triplets")
        for data in (self.train_set, *self.heldout_sets.values()):
            # Shards of another size, or not of pictures, show here and not after minutes of work.
            for i in spread(len(data), 8):
                data.usable(i)
        self.order = EpochOrder(len(self.train_set), config.seed)
        self.scorer = build_scorer(config.reward, self.device)
        self.version = PolicyVersion(0, 0)
        self.snapshots: dict[str, AdapterState] = {}
        if checkpoint is not None:
            self._load_base(checkpoint, model)
        vae.to(self.device)
        model.to(self.device)
        self.adapters = Adapters(model, config.learner.lora_rank, seed=self._adapter_seed())
        self.conditions = ConditionCache(model)
        self.sampler = GroupSampler(model, config.rollout, self.conditions)
        self.learner = GrpoLearner(self.adapters, config.learner, config.rollout.temperature)
        if checkpoint is not None:
            self._load_adapters(checkpoint)
        return {
            "device": str(self.device),
            "model parameters": sum(p.numel() for p in model.parameters()),
            "trainable parameters": sum(p.numel() for p in self.adapters.parameters()),
            "training conditions": len(self.train_set),
            **{f"{name} conditions": len(rows) for name, rows in self.heldout_sets.items()},
        }

    def step(self, step: int) -> StepReport:
        """Sample, score and learn: one GRPO step on the conditions that the order gives to `step`."""
        config, timer = self.config, self.timer
        with timer("data"):
            batch = self._to_device(batch_at(self.train_set, self.order, step, config.conditions))
        with timer("condition"):
            state = self.conditions.get(batch)
        with ExitStack() as merged:
            with timer("merge"):
                merged.enter_context(self.adapters.merged())
            with timer("rollout"):
                trajectories = self.sampler.sample(batch, config.seed, step, self.version)
            with timer("reward"):
                scores = self.scorer.score(trajectories.images, batch.target)
            with timer("update"):
                result = self.learner.update(step, state, trajectories, scores)
        if not result.metrics["guard/skipped_steps"]:
            self.version = self.version._replace(updates=self.version.updates + 1)
        seconds = timer.take()
        seconds["time/step"] = sum(seconds.values())
        metrics = {
            "reward/mean": float(scores.rewards.mean()),
            **{f"reward/component/{name}": float(value.mean()) for name, value in scores.components.items()},
            **result.metrics,
            **seconds,
            "throughput/trajectories_per_s": scores.rewards.numel() / seconds["time/step"],
            **memory(self.device),
        }
        rows = TrajectoryRows(
            keys=batch.keys,
            rewards=scores.rewards.cpu(),
            components={name: value.cpu() for name, value in scores.components.items()},
            advantages=result.advantages.cpu(),
            logp=trajectories.logp.sum(-1).cpu(),
            kl=result.kl.cpu(),
            seeds=trajectories.seeds,
            version=trajectories.policy_version,
        )
        return StepReport(metrics, rows)

    def evaluate(self, name: str, conditions: int | None = None) -> HeldoutReport:
        """Score `conditions` (all by default) of the held-out set `name` with fixed seeds, a few of them at a time.

        The random numbers are coupled, so that two policies differ by little else than what they learned.
        """
        monitor = self.config.monitor
        data = self.heldout_sets[name]
        chosen = range(len(data)) if conditions is None else spread(len(data), conditions)
        keys: list[str] = []
        rewards, parts, samples = [], [], []
        rows: list[GridRow] = []
        sampler = GroupSampler(self.adapters.model, self.config.rollout, streams=CoupledStreams)
        shown = min(monitor.image_conditions, len(chosen))
        with self.adapters.merged():
            for start in range(0, len(chosen), 8):
                batch = self._to_device(ConditionBatch.stack([data.usable(i) for i in chosen[start : start + 8]]))
                drawn = sampler.sample(batch, self.config.seed, HELDOUT_STEP, self.version, monitor.eval_group)
                scores = self.scorer.score(drawn.images, batch.target)
                keys += batch.keys
                rewards.append(scores.rewards.cpu())
                parts.append({name: value.cpu() for name, value in scores.components.items()})
                for b in range(min(len(batch), shown - len(rows))):
                    images = drawn.images[b].cpu()
                    samples.append(images)
                    content, style, target = (image[b].cpu() for image in (batch.content, batch.style, batch.target))
                    rows.append(GridRow(content, style, target, images, reward_captions(scores.rewards[b])))
        return HeldoutReport(
            tuple(keys),
            torch.cat(rewards),
            {name: torch.cat([part[name] for part in parts]) for name in parts[0]},
            torch.stack(samples),
            draw_grid(rows),
        )

    def apply(self, action: MergeAction) -> None:
        """Carry out what the merge controller decided."""
        if action is MergeAction.SNAPSHOT:
            self.snapshots["peak"] = self.adapters.state()
            return
        if action is MergeAction.SNAPSHOT_BEST_HELDOUT:
            self.snapshots["heldout"] = self.adapters.state()
            return
        if action is MergeAction.REWARD_ROLLBACK:
            self.adapters.load(self.snapshots["heldout"])
            self.snapshots.pop("peak", None)
        else:
            if action.merges:
                self.adapters.load(self.snapshots["peak"])
                self.adapters.bake()
                self.version = self.version._replace(merges=self.version.merges + 1)
            self.snapshots.clear()
            self.adapters.reset(self._adapter_seed())
        self.learner.reset_optimizer()

    def save_base(self, folder: Path) -> None:
        """Write the base model, without the adapters, into an existing folder."""
        save_model(self.adapters.base_state(), self.adapters.model.arch, folder)

    def save_policy(self, folder: Path) -> None:
        """Write the current policy, adapters baked in, into an existing folder."""
        save_model(self.adapters.baked_state(), self.adapters.model.arch, folder)

    def save(self, folder: Path, base: str) -> None:
        """Write all that a run needs to go on into an existing folder; `base` says where its base model lies."""
        self.adapters.save(folder / "adapter")
        for name, state in self.snapshots.items():
            save_file({k: v.contiguous().cpu() for k, v in state.items()}, str(folder / f"snapshot_{name}.safetensors"))
        torch.save(self.learner.state_dict(), folder / "optimizer.pt")
        self.adapters.model.arch.save(folder / "config.json")
        facts = {"version": list(self.version), "base": base, "fingerprint": self.adapters.fingerprint()}
        (folder / "worker.json").write_text(json.dumps(facts, indent=2) + "\n")

    def fingerprint(self) -> str:
        """A hash of the effective weights."""
        return self.adapters.fingerprint()

    def _load_base(self, checkpoint: Path, model: torch.nn.Module) -> None:
        facts = json.loads((checkpoint / "worker.json").read_text())
        self.version = PolicyVersion(*facts["version"])
        if facts["base"] != "init":
            merge = checkpoint.parent.parent / facts["base"]
            load_into(model, read_model_state(merge / MODEL_FILE), str(merge))

    def _load_adapters(self, checkpoint: Path) -> None:
        self.adapters.load_folder(checkpoint / "adapter")
        for name in ("peak", "heldout"):
            path = checkpoint / f"snapshot_{name}.safetensors"
            if path.is_file():
                self.snapshots[name] = load_file(str(path), device=str(self.device))
        self.learner.load_state_dict(torch.load(checkpoint / "optimizer.pt", map_location=self.device, weights_only=True))
        facts = json.loads((checkpoint / "worker.json").read_text())
        if self.device.type == "cpu" and self.adapters.fingerprint() != facts["fingerprint"]:
            raise UserError(
                f"{checkpoint} does not restore the weights it was saved from: the base model has changed since "
                f"(check --init {self.config.init}, or start a new run)"
            )

    def _adapter_seed(self) -> int:
        return trajectory_seed(self.config.seed, self.version.updates, "adapters", self.version.merges)

    def _to_device(self, batch: ConditionBatch) -> ConditionBatch:
        moved = {name: getattr(batch, name).to(self.device) for name in ("content", "style", "target")}
        return dataclasses.replace(batch, **moved)


def spread(total: int, count: int) -> list[int]:
    """`count` indices of `total`, evenly spread."""
    return sorted({int(i) for i in np.linspace(0, total - 1, min(count, total)).round()})
