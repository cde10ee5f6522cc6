"""FLOPs of a step: 2 x the multiply-adds of matrix products, attention and convolutions, counted in the run's own code.

Elementwise operations are not counted. Attention counts as two products forward and four backward; kernels that recompute
the scores in the backward pass do a quarter more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from launch.sizing.phases import Phases, Workload, over_depth, score
from launch.sizing.trace import count_flops_of


@dataclass(frozen=True)
class Flops:
    """Counts by phase. Counts per trajectory leave out what its group shares; `per_trajectory` adds a share of it."""

    encode: int
    """Per condition: encoders, VQ encoder if the shards bring no tokens, adaLN."""
    encode_again: int
    """Per condition, by a learner in another process, which receives the VQ tokens."""
    queries: int
    """Per condition: guide queries of all blocks; rollout, reference and update each compute them."""
    queries_backward: int
    """Per condition."""
    target: int
    """Per condition: embedding the target for the reward."""
    effective_weights: int
    """Per version of the adapters."""
    rollout: int
    """Per trajectory, without the decoder."""
    decode: int
    """Per trajectory."""
    reward: int
    """Per trajectory; with its gradient, if the credit needs that."""
    credit: int
    """Per trajectory: the reward's gradient on its way through the decoder to the tokens; 0 for other kinds of credit."""
    forward: int
    """Per trajectory: a teacher-forced pass, as of the reference and of each update."""
    head_backward: int
    """Per trajectory: the head's part of the backward pass. The forward pass does it, while the logits are in memory."""
    backward: int
    """Per trajectory, without the head."""

    def per_trajectory(self, group: int) -> dict[str, float]:
        """FLOPs of one trajectory by phase, with its share of what its group (G = `group`) computes once.

        `update forward` and `update backward` are for one pass over the trajectories.
        """
        return {
            "condition": self.encode / group,
            "rollout": self.rollout + self.queries / group,
            "decode": float(self.decode),
            "reward": self.reward + self.target / group,
            **({"credit": float(self.credit)} if self.credit else {}),
            "reference": self.forward + self.queries / group,
            "update forward": self.forward + self.head_backward + self.queries / group,
            "update backward": self.backward + self.queries_backward / group,
        }

    def per_step(self, conditions: int, group: int, passes: int, optimizer_steps: int, copies: int = 1) -> dict[str, float]:
        """FLOPs of a step of B = `conditions` by phase.

        Args:
            passes: how often the update goes over the same trajectories.
            optimizer_steps: in the whole step.
            copies: how many processes encode each condition, and compute the effective weights.
        """
        times = {"condition": copies, "update forward": passes, "update backward": passes}
        counts = {
            phase: conditions * group * flops * times.get(phase, 1) for phase, flops in self.per_trajectory(group).items()
        }
        return counts | {"effective weights": float(self.effective_weights * (optimizer_steps + copies - 1))}


def count_flops(work: Workload) -> Flops:
    """Count the phases on the meta device. It takes seconds at any size, since one and two blocks stand for all."""
    counts = over_depth(work, _measure)
    return Flops(**counts, **_reward(work))


def _measure(phases: Phases) -> dict[str, int]:
    counts = {}
    state, counts["encode"] = count_flops_of(lambda: phases.encode(1))
    _, counts["encode_again"] = count_flops_of(lambda: phases.encode(1, tokens_known=True))
    with phases.adapters.effective_weights():
        _, counts["effective_weights"] = count_flops_of(phases.adapters.refresh)
        queries, counts["queries"] = count_flops_of(lambda: phases.queries(state))
        _, counts["rollout"] = count_flops_of(lambda: phases.sample(state, queries, 1))
        _, counts["decode"] = count_flops_of(lambda: phases.decode(1))
        _, counts["credit"] = count_flops_of(lambda: phases.credit(1))
        _, reference = count_flops_of(lambda: phases.reference(state, 1))
        counts["forward"] = reference - counts["queries"]
        (live, leaves, end), forward = count_flops_of(lambda: phases.forward(state, 1))
        counts["head_backward"] = forward - reference
        _, counts["backward"] = count_flops_of(lambda: torch.autograd.backward(end))
        _, counts["queries_backward"] = count_flops_of(lambda: phases.backward_queries(live, leaves))
    return counts


def _reward(work: Workload) -> dict[str, int]:
    _, one = count_flops_of(lambda: score(work, 1, 1))
    _, two = count_flops_of(lambda: score(work, 1, 2))
    return {"reward": two - one, "target": 2 * one - two}
