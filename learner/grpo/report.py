"""Statistics of the trajectories of an optimizer step, and their TensorBoard scalars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.credit.base import Advantages
from learner.grpo.loss import LossTerms
from stylevar.contracts import StepMetrics

COLUMNS = ("total", "policy", "raw_kl", "clip_frac", "ratio_mean")


@dataclass
class TrajectoryStats:
    """Columns of values for the trajectories that one process has handled in a pass; all on CPU.

    values   {name: fp32 [N]}: `COLUMNS`, "entropy" and, if measured, "importance", "credit" (how far the advantages of
             its codes, or of its tokens, are from 0),
             "mismatch_max" and "mismatch_mean"
    scales   {"kl", "entropy", "credit": fp32 [N, S]}, means over the tokens of each scale
    """

    values: dict[str, list[Tensor]]
    scales: dict[str, list[Tensor]]

    @staticmethod
    def empty() -> TrajectoryStats:
        return TrajectoryStats({}, {})

    def add(self, terms: LossTerms, scales: Sequence[slice], **tokens: Tensor | None) -> None:
        """Add the loss terms of some trajectories, and the means of other values of their tokens, [n, L]."""
        for name in COLUMNS:
            self._append(name, getattr(terms, name).detach())
        for name, values in tokens.items():
            if values is None:
                continue
            if name == "mismatch":
                self._append("mismatch_max", values.amax(1))
                self._append("mismatch_mean", values.mean(1))
            else:
                self._append(name, values.mean(1))
        for name, per_token in (("kl", terms.kl_tokens), *((name, tokens.get(name)) for name in ("entropy", "credit"))):
            if per_token is not None:
                means = torch.stack([per_token[:, at].mean(1) for at in scales], dim=1)
                self.scales.setdefault(name, []).append(means.float().cpu())

    def _append(self, name: str, values: Tensor) -> None:
        self.values.setdefault(name, []).append(values.float().cpu())

    def column(self, name: str) -> Tensor:
        """The column `name`, fp32 [N]; empty if it was not measured."""
        return torch.cat(self.values[name]) if name in self.values else torch.zeros(0)


@dataclass(frozen=True)
class PassReport:
    """One optimizer step in one process: its trajectories, those that the guard kept (bool [N]), and the results.

    `half_cosine` compares the gradients of the step's two halves (`half_gradients.py`), if there are two.
    """

    stats: TrajectoryStats
    keep: Tensor
    skipped: bool
    grad_norm: float
    half_cosine: float | None = None


def step_metrics(
    ranks: Sequence[Sequence[PassReport]], advantages: Sequence[Advantages], kl_beta: float, scales: int
) -> StepMetrics:
    """Means over the kept trajectories of all passes of all processes (`ranks`, in rank order).

    Only `kl/raw` is over every trajectory with a finite KL: if the guard drops all trajectories of a diverged policy, the
    merge controller must still see how far it is (infinite, if no KL is finite).
    """
    passes = [report for reports in ranks for report in reports]
    keep = torch.cat([p.keep for p in passes])

    def column(name: str) -> Tensor:
        return torch.cat([p.stats.column(name) for p in passes])

    def mean(name: str) -> float:
        values = column(name)
        return float(values[keep].mean()) if keep.any() else float("nan")

    raw_kl = column("raw_kl")
    raw_kl = raw_kl[raw_kl.isfinite()]
    kl = float(raw_kl.mean()) if len(raw_kl) else float("inf")
    std, zero = torch.cat([a.std.cpu() for a in advantages]), [a.frac_zero_std * len(a.std) for a in advantages]
    own = ranks[0]  # the optimizer is the same everywhere
    metrics = {
        "reward/std": float(std.mean()),
        "reward/frac_zero_std": sum(zero) / len(std),
        "kl/raw": kl,
        "loss/policy": mean("policy"),
        "loss/kl": kl_beta * kl,
        "loss/total": mean("total"),
        "policy/ratio_mean": mean("ratio_mean"),
        "policy/clip_frac": mean("clip_frac"),
        "policy/entropy": mean("entropy"),
        "grad/norm": own[-1].grad_norm,
        "guard/dropped": float((~keep).sum()),
        "guard/skipped_steps": float(sum(p.skipped for p in own)),
    }
    mismatch = column("mismatch_max")
    if len(mismatch):
        metrics["policy/logprob_mismatch_max"] = float(mismatch.max())
        metrics["policy/logprob_mismatch_mean"] = float(column("mismatch_mean").mean())
    cosines = [p.half_cosine for p in passes if p.half_cosine is not None]
    if cosines:
        metrics["credit/half_cosine"] = sum(cosines) / len(cosines)
    if len(column("credit")):
        metrics["credit/spread"] = mean("credit")
    if len(column("importance")):
        metrics["policy/importance_mean"] = mean("importance")
    for name, tag in (("kl", "kl"), ("entropy", "policy/entropy"), ("credit", "credit")):
        per_scale = [part for p in passes for part in p.stats.scales.get(name, [])]
        if per_scale:
            rows = torch.cat(per_scale)[keep]
            metrics |= {
                f"{tag}/per_scale/{s}": float(rows[:, s].mean()) if len(rows) else float("nan") for s in range(scales)
            }
    return metrics
