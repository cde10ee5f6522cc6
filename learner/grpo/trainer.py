"""A policy in training: its adapters, their optimizer, and the snapshots that merges and rollbacks restore."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file

from learner.grpo.config import LearnerConfig
from learner.grpo.merging import MergeAction
from learner.grpo.update import GrpoLearner
from learner.lesson import Lesson, UpdateResult
from stylevar.adapters import AdapterState
from stylevar.checkpoint import save_model, save_torch
from stylevar.clock import Clock, untimed
from stylevar.conditions import ConditionState, encode_batch
from stylevar.contracts import ConditionBatch, PolicyVersion
from stylevar.errors import UserError
from stylevar.policy import Policy
from stylevar.restoring import EARLIER, restoring
from stylevar.source import ADAPTER, FACTS, merged_base
from stylevar.text_files import read_record
from stylevar.weight_files import read_file

OPTIMIZER = "optimizer.pt"


class Trainer:
    """The state of a learner. With several learners, all of them hold the same state."""

    def __init__(
        self,
        policy: Policy,
        config: LearnerConfig,
        temperature: float = 1.0,
        clock: Clock = untimed,
        steps: int | None = None,
    ) -> None:
        """See `GrpoLearner`."""
        self.policy, self.adapters = policy, policy.adapters
        self.learner = GrpoLearner(policy.adapters, config, temperature, clock, steps)
        self.snapshots: dict[str, AdapterState] = {}

    def encode(self, batch: ConditionBatch) -> ConditionState:
        """Encode conditions for the learner; updates do not change the result."""
        return encode_batch(self.policy.model, batch)

    def update(self, step: int, minibatches: Sequence[Sequence[Lesson]], fresh: bool = True) -> UpdateResult:
        """See `GrpoLearner.update`. A step that changes the adapters increments the version."""
        result = self.learner.update(step, minibatches, fresh)
        if result.changed:
            self._changed()
        return result

    def apply(self, action: MergeAction) -> AdapterState | None:
        """Carry out an action of the merge controller; returns the adapters baked into the base, or None."""
        baked = None
        if action is MergeAction.SNAPSHOT:
            self.snapshots["peak"] = self.adapters.state()
            return None
        if action is MergeAction.SNAPSHOT_BEST_HELDOUT:
            self.snapshots["heldout"] = self.adapters.state()
            return None
        if not action.merges:
            self.learner.back_off()
        if action is MergeAction.REWARD_ROLLBACK:
            self.adapters.load(self.snapshots["heldout"])
            self.snapshots.pop("peak", None)
            self._changed()
        elif action.merges:
            baked = self.snapshots["peak"]
            self.policy.merge(baked)
            self.snapshots.clear()
        else:
            self.snapshots.clear()
            self._changed()
            self.policy.restart()
        self.learner.reset_optimizer()
        return baked

    def save_base(self, folder: Path) -> None:
        """Write the base model, without the adapters, into an existing folder."""
        save_model(self.adapters.base_state(), self.adapters.model.arch, folder)

    def save_policy(self, folder: Path) -> None:
        """Write the current policy, adapters baked in, into an existing folder."""
        save_model(self.adapters.baked_state(), self.adapters.model.arch, folder)

    def save(self, folder: Path, base: str) -> None:
        """Write everything needed to resume into an existing folder; `base` names the run's base model."""
        self.adapters.save(folder / ADAPTER)
        for name, state in self.snapshots.items():
            save_file({k: v.contiguous().cpu() for k, v in state.items()}, str(folder / f"snapshot_{name}.safetensors"))
        save_torch(self.learner.state_dict(), folder / OPTIMIZER)
        self.adapters.model.arch.save(folder / "config.json")
        facts = {"version": list(self.policy.version), "base": base, "fingerprint": self.adapters.fingerprint()}
        facts["device"] = self.policy.device.type  # another device sums in another order
        (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n")

    def load(self, folder: Path) -> None:
        """Inverse of `save`, on the base and version given by `saved_base`. UserError if the base has changed."""
        self.adapters.load_folder(folder / ADAPTER)
        device = self.policy.device
        for name in ("peak", "heldout"):
            path = folder / f"snapshot_{name}.safetensors"
            if path.is_file():
                self.snapshots[name] = read_file(path, device)
        # The optimizer moves the loaded state to the device of its own state.
        state = read_file(folder / OPTIMIZER)
        with restoring(folder):
            self.learner.load_state_dict(state)
        facts = read_record(folder / FACTS, EARLIER, fingerprint=str)
        comparable = device.type == "cpu" == facts.get("device", "cpu")
        if comparable and self.adapters.fingerprint() != facts["fingerprint"]:
            raise UserError(
                f"{folder} does not restore the weights it was saved from: the base model has changed since "
                "(check --init, or start a new run)"
            )

    def _changed(self) -> None:
        version = self.policy.version
        self.policy.version = version._replace(updates=version.updates + 1)


def saved_base(checkpoint: Path) -> tuple[str | None, PolicyVersion]:
    """The merged base of a checkpoint in a run's folder (None for --init), and its version."""
    facts = read_record(checkpoint / FACTS, EARLIER, version=list)
    with restoring(checkpoint):
        return merged_base(checkpoint), PolicyVersion(*map(int, facts["version"]))
