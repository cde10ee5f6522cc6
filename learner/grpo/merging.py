"""When to merge the adapters into the base and when to roll them back: a state machine on numbers, without tensors.

There are two policies. "paper" is the rule published with the StyleVAR paper:

* Every new peak of the reward's moving average (EMA) since the last merge snapshots the adapters.
* Peak merge: the peak is `min_gain` above the baseline and `patience` steps old, and the last merge `peak_min_steps` ago.
* Emergency merge: raw KL is above `emergency_kl`, and the last merge was `emergency_min_steps` ago.
* Both bake the peak's snapshot into the base, and the peak becomes the new baseline.

In a published run with that rule, emergency merges fired while the reward fell, and each made a worse policy the new
reference. "guarded", the default, prevents merges that make the policy worse:

* Only an EMA above the baseline counts as a peak, or else a held-out score above the base's own. So there is only a
  snapshot if it beat the base it would be baked into. There is no merge while the last held-out score is below the base's
  own: rewards of training can rise after a fall. An emergency that cannot merge is a rollback: the adapters return to zero,
  the base that the baseline measures.
* The EMA is reset with the weights: to the peak after a merge, to the baseline after a rollback. Otherwise the rewards
  of the abandoned weights would keep the average low for hundreds of steps and hide the next peak. After a rollback before
  there is a baseline, its rewards are counted anew: a baseline that the abandoned weights have lowered is easy to beat.
* The baseline is the mean of the first `baseline_steps` rewards, and the EMA is a plain mean until it has seen
  1 / (1 - ema_beta) of them: the reward of a single step is too noisy to measure a gain of `min_gain` against.
* An emergency does not wait if the step was skipped because the KL is above its limit (`learner/grpo/guard.py`): the policy
  would stay as it is, and all further steps would be skipped, too.
* Reward rollback: when the held-out score falls `rollback_drop` below its best, the best adapters are restored. The score
  before training is the first to compare with, so a run cannot end far below its start unnoticed.

A merge or a rollback restarts the step counts. After a rollback to zero, the best held-out score is that of the base. After
a merge, the base has changed and has no score yet: the next held-out score is the new reference.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Lt

from stylevar.bounds import Remedy, check_bounds


@dataclass(frozen=True)
class MergeConfig:
    """When adapters are merged into the base, or rolled back."""

    merge_policy: Literal["guarded", "paper"] = "guarded"
    """guarded: merge only weights that beat the base, and roll back when held-out rewards fall;
    paper: the published rule, which in an emergency merges the latest peak, however low."""
    ema_beta: Annotated[float, Ge(0), Lt(1), Remedy("try 0.99")] = 0.99
    """Decay per step of the moving average of the mean reward, in [0, 1)."""
    baseline_steps: Annotated[int, Ge(1)] = 10
    """guarded: the first baseline is the mean reward of this many steps (paper: of only the first step)."""
    peak_min_steps: Annotated[int, Ge(0)] = 300
    """Peak merge: at least this many steps since the last merge or rollback."""
    min_gain: Annotated[float, Ge(0), Le(math.inf)] = 0.05
    """Peak merge: the peak of the moving average is at least this far above the baseline."""
    patience: Annotated[int, Ge(0)] = 50
    """Peak merge: the peak is at least this many steps old."""
    emergency_kl: Annotated[float, Ge(0), Le(math.inf)] = 2.0
    """Emergency: raw KL (PANW-weighted, before beta) above this."""
    emergency_min_steps: Annotated[int, Ge(0)] = 50
    """Emergency: at least this many steps since the last merge or rollback; guarded: fewer if steps are skipped."""
    rollback_drop: Annotated[float, Ge(0), Le(math.inf)] = 0.1
    """guarded: restore the best adapters when the held-out reward falls more than this below its best; inf for never."""

    def __post_init__(self) -> None:
        check_bounds(self)


class MergeAction(str, Enum):
    """What the caller must do, in the order given. All actions but the snapshots also reset the optimizer."""

    SNAPSHOT = "snapshot"
    """Copy the adapters to the peak snapshot."""
    SNAPSHOT_BEST_HELDOUT = "snapshot_best_heldout"
    """Copy the adapters to the best-held-out snapshot."""
    PEAK_MERGE = "peak_merge"
    """Restore the peak snapshot, bake it into the base, reset the adapters."""
    EMERGENCY_MERGE = "emergency_merge"
    """Like PEAK_MERGE, because the policy has drifted too far from its reference."""
    ROLLBACK = "rollback"
    """Reset the adapters (no effect) on the unchanged base."""
    REWARD_ROLLBACK = "reward_rollback"
    """Restore the best-held-out snapshot, without a merge."""

    @property
    def merges(self) -> bool:
        """Whether the base changes."""
        return self in (MergeAction.PEAK_MERGE, MergeAction.EMERGENCY_MERGE)

    @property
    def changes_weights(self) -> bool:
        """Whether the policy changes."""
        return self not in (MergeAction.SNAPSHOT, MergeAction.SNAPSHOT_BEST_HELDOUT)


@dataclass
class _State:
    step: int | None = None  # the last step seen
    updates: int = 0  # rewards that entered the EMA
    ema: float | None = None
    baseline: float | None = None
    peak: float | None = None
    peak_step: int | None = None  # None: no snapshot since the last merge or rollback
    reset_step: int = 0  # the last merge or rollback, or the step before the first
    heldout_base: float | None = None  # the score of the base without adapters, if known
    heldout_last: float | None = None  # the last score since the last merge or rollback
    heldout_best: float | None = None
    heldout_best_ema: float | None = None
    merges: int = 0
    rollbacks: int = 0


class MergeController:
    """Decides after each step whether to snapshot, merge or roll back. `state_dict` makes it resume bit-exactly."""

    def __init__(self, config: MergeConfig) -> None:
        self.config = config
        self._state = _State()

    def begin(self, heldout: float) -> list[MergeAction]:
        """Call before the first step, with the held-out score of the untrained policy. Returns actions like `update`."""
        if not self._guarded or not math.isfinite(heldout):
            return []
        self._state.heldout_base = self._state.heldout_best = heldout
        return [MergeAction.SNAPSHOT_BEST_HELDOUT]

    def update(
        self, step: int, mean_reward: float, raw_kl: float, heldout: float | None = None, learned: bool = True
    ) -> list[MergeAction]:
        """The actions to carry out, in order, after step `step` (0, 1, 2, ...); usually none.

        mean_reward: over the step's trajectories; the EMA ignores it if it is not finite. raw_kl: the step's mean, before
        beta. heldout: the score of the current adapters on the held-out conditions, on steps with an evaluation. learned:
        whether the step changed the weights. At most one of the actions is not a snapshot.
        """
        s = self._state
        if s.step is None:
            s.reset_step = step - 1
        s.step = step
        actions = []
        if math.isfinite(mean_reward) and self._track_reward(step, mean_reward):
            actions.append(MergeAction.SNAPSHOT)
        dropped = False
        if heldout is not None and self._guarded:
            s.heldout_last = heldout
            if math.isfinite(heldout) and (s.heldout_best is None or heldout > s.heldout_best):
                s.heldout_best, s.heldout_best_ema = heldout, s.ema
                actions.append(MergeAction.SNAPSHOT_BEST_HELDOUT)
                if s.peak_step is None and s.heldout_base is not None:
                    s.peak_step = step
                    actions.append(MergeAction.SNAPSHOT)
            elif s.heldout_best is not None:
                # This form makes a score of NaN count as a drop.
                dropped = not heldout >= s.heldout_best - self.config.rollback_drop
        verdict = self._verdict(step, raw_kl, dropped, stuck=self._guarded and not learned)
        if verdict is not None:
            actions.append(verdict)
            self._restart(step, verdict)
            if verdict is MergeAction.ROLLBACK and s.heldout_best is not None:
                actions.append(MergeAction.SNAPSHOT_BEST_HELDOUT)
        return actions

    def metrics(self) -> dict[str, float]:
        """TensorBoard scalars, without those that have no value yet."""
        s = self._state
        values = {
            "reward/ema": s.ema,
            "merge/count": s.merges,
            "merge/rollbacks": s.rollbacks,
            "merge/baseline": s.baseline,
            "merge/peak": s.peak,
            "merge/steps_since": None if s.step is None else s.step - s.reset_step,
        }
        return {tag: float(value) for tag, value in values.items() if value is not None}

    def state_dict(self) -> dict[str, Any]:
        """The state for JSON: only numbers and None."""
        return asdict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state returned by `state_dict`."""
        self._state = _State(**state)

    @property
    def _guarded(self) -> bool:
        return self.config.merge_policy == "guarded"

    def _track_reward(self, step: int, reward: float) -> bool:
        """Update the EMA; returns True if it reached a new peak."""
        s, config = self._state, self.config
        s.updates += 1
        rate = 1 - config.ema_beta
        if self._guarded:
            rate = max(rate, 1 / s.updates)
        s.ema = reward if s.ema is None else s.ema + rate * (reward - s.ema)
        if s.baseline is None:
            if self._guarded and s.updates < config.baseline_steps:
                return False
            s.baseline = s.ema
            s.peak = s.ema if self._guarded else None
        if s.peak is not None and s.ema <= s.peak:
            return False
        s.peak, s.peak_step = s.ema, step
        return True

    def _verdict(self, step: int, raw_kl: float, heldout_dropped: bool, stuck: bool) -> MergeAction | None:
        s, config = self._state, self.config
        if heldout_dropped:
            return MergeAction.REWARD_ROLLBACK
        since = step - s.reset_step
        worse = s.heldout_base is not None and s.heldout_last is not None and s.heldout_last < s.heldout_base
        if (
            not worse
            and s.peak_step is not None
            and s.peak is not None
            and s.baseline is not None
            and since >= config.peak_min_steps
            and s.peak - s.baseline >= config.min_gain
            and step - s.peak_step >= config.patience
        ):
            return MergeAction.PEAK_MERGE
        if raw_kl > config.emergency_kl and (stuck or since >= config.emergency_min_steps):
            return MergeAction.ROLLBACK if s.peak_step is None or worse else MergeAction.EMERGENCY_MERGE
        return None

    def _restart(self, step: int, verdict: MergeAction) -> None:
        """Restart the state for the weights after `verdict`."""
        s = self._state
        if verdict.merges:
            s.merges += 1
            s.baseline = s.peak
            s.heldout_base = None
        else:
            s.rollbacks += 1
        s.peak_step = None
        s.heldout_last = None
        s.reset_step = step
        if not self._guarded:
            s.peak = None  # the next step's EMA counts as a peak, however low
            return
        s.peak = s.baseline
        returned = verdict is MergeAction.REWARD_ROLLBACK
        if returned and s.heldout_best_ema is not None:
            s.ema = s.heldout_best_ema
        elif s.baseline is not None:
            s.ema = s.baseline
        else:
            s.ema, s.updates = None, 0
        if not returned:
            s.heldout_best, s.heldout_best_ema = s.heldout_base, None
