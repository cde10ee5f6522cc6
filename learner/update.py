"""One GRPO step: reference pass, clipped PANW-weighted loss in micro-batches, guarded optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learner.advantage import AdvantageNorm, Advantages, group_advantages
from learner.guard import guard_trajectories
from learner.kl import KlKind
from learner.loss import LossTerms, grpo_loss
from learner.panw import panw_weights
from stylevar.adapters import Adapters
from stylevar.conditions import ConditionState, guide_queries, teacher_forced
from stylevar.contracts import Scores, StepMetrics, Trajectories
from stylevar.errors import UserError
from stylevar.sampling import unpack_support


@dataclass(frozen=True)
class LearnerConfig:
    """The GRPO update."""

    lora_rank: int = 256
    """Rank of the adapters; alpha is twice the rank."""
    lr: float = 1e-5
    """AdamW learning rate."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    """AdamW moment decays."""
    weight_decay: float = 0.01
    """AdamW weight decay."""
    grad_clip: float = 1.0
    """Bound on the global norm of the gradient."""
    clip_eps: float = 0.2
    """The ratio is clipped to [1 - eps, 1 + eps]."""
    kl_beta: float = 0.1
    """Weight of the KL penalty."""
    kl_estimator: KlKind = "k3"
    """Estimator of KL(policy || reference) from samples; paper is the published code's, with the signs reversed."""
    panw_gamma: float = 0.7
    """Exponent of the per-token weights, (tokens of the scale)^-gamma; 0 weighs all tokens alike."""
    adv_norm: AdvantageNorm = "std"
    """Divide advantages by the group's standard deviation, or not."""
    kl_limit: float = 5.0
    """Step guard: trajectories with a larger raw KL are dropped from the step."""
    updates_per_rollout: int = 1
    """Passes over the same trajectories."""
    minibatches: int = 1
    """Optimizer steps per pass, each on an equal share of the conditions."""
    micro_batch: int = 0
    """Trajectories per forward and backward pass; 0 for a whole group. A smaller number saves memory."""
    mismatch_limit: float = 1e-4
    """The largest difference allowed between the rollout's log-probs and the learner's at the same weights."""

    def __post_init__(self) -> None:
        for name in ("lr", "grad_clip", "kl_limit", "mismatch_limit"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be positive")
        if not 0 < self.clip_eps < 1:
            raise UserError(f"--clip-eps {self.clip_eps}: must lie between 0 and 1")
        if self.updates_per_rollout < 1 or self.minibatches < 1 or self.micro_batch < 0:
            raise UserError(
                f"--updates-per-rollout {self.updates_per_rollout} --minibatches {self.minibatches} "
                f"--micro-batch {self.micro_batch}: the first two must be at least 1, the last at least 0"
            )


class LogprobMismatch(RuntimeError):
    """Sampler and learner disagree on log-probs at equal weights: the update would not follow its own samples."""


@dataclass(frozen=True)
class UpdateResult:
    """What a step did: scalars for TensorBoard, and per trajectory [B, G] the advantage and the raw KL."""

    metrics: StepMetrics
    advantages: Tensor
    kl: Tensor


class GrpoLearner:
    """Holds the adapters' optimizer and turns scored trajectories into an update of the adapters."""

    def __init__(self, adapters: Adapters, config: LearnerConfig, temperature: float = 1.0) -> None:
        self.adapters, self.model, self.config, self.temperature = adapters, adapters.model, config, temperature
        self.weights = panw_weights(self.model.arch.patch_nums, config.panw_gamma).to(self.model.device)
        self.reset_optimizer()

    def reset_optimizer(self) -> None:
        """A fresh optimizer, as after a merge or a rollback."""
        c = self.config
        self.optimizer = torch.optim.AdamW(
            self.adapters.parameters(), lr=c.lr, betas=c.adam_betas, weight_decay=c.weight_decay
        )

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)

    def logprobs(
        self, state: ConditionState, queries: Sequence[Tensor], tokens: Tensor, support: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Log-probs of `tokens` [B, G, L] and the entropies of their distributions, fp32 [B, G, L] each."""
        logits = teacher_forced(self.model, state, queries, tokens)
        if self.temperature != 1.0:
            logits = logits / self.temperature
        if support is not None:
            logits = logits.masked_fill(~unpack_support(support, logits.shape[-1]), -1e9)
        logp_all = logits.log_softmax(-1)
        with torch.no_grad():
            entropy = -(logp_all.exp() * logp_all).sum(-1)
        return logp_all.gather(-1, tokens.long().unsqueeze(-1)).squeeze(-1), entropy

    @torch.no_grad()
    def reference_logprobs(self, state: ConditionState, trajectories: Trajectories) -> Tensor:
        """Log-probs of the trajectories under the base weights, fp32 [B, G, L]."""
        rows = []
        with self.adapters.off():
            for b in range(len(trajectories.keys)):
                one = state.select(slice(b, b + 1))
                queries = guide_queries(self.model, one)
                parts = [self.logprobs(one, queries, t, s)[0] for t, s, _ in self._micro_batches(trajectories, b)]
                rows.append(torch.cat(parts, dim=1))
        return torch.cat(rows)

    def _micro_batches(self, trajectories: Trajectories, b: int) -> list[tuple[Tensor, Tensor | None, slice]]:
        """Tokens [1, g, L], support, and where they lie in the group of condition b."""
        group = trajectories.tokens.shape[1]
        size = self.config.micro_batch or group
        spans = [slice(g, min(g + size, group)) for g in range(0, group, size)]
        support = trajectories.support
        return [(trajectories.tokens[b : b + 1, g], None if support is None else support[b : b + 1, g], g) for g in spans]

    def update(self, step: int, state: ConditionState, trajectories: Trajectories, scores: Scores) -> UpdateResult:
        """One GRPO step on scored trajectories of the current weights.

        Args:
            step: for error messages.
            state: the encoded conditions of the trajectories.
        Raises:
            LogprobMismatch: the first pass's log-probs differ from the recorded ones by more than `mismatch_limit`.
        """
        c, conditions = self.config, len(trajectories.keys)
        if conditions % c.minibatches:
            raise UserError(f"--minibatches {c.minibatches} does not divide --conditions {conditions}")
        advantages = group_advantages(scores.rewards, c.adv_norm)
        ref = self.reference_logprobs(state, trajectories)
        old = trajectories.logp
        if trajectories.support is not None:
            old = old - trajectories.kept_mass
        share = conditions // c.minibatches
        passes: list[_Pass] = []
        for update in range(c.updates_per_rollout):
            for first in range(0, conditions, share):
                on_policy = update == 0 and first == 0
                rows = range(first, first + share)
                passes.append(self._pass(step, rows, state, trajectories, old, ref, advantages, on_policy))
                if len(passes) < c.updates_per_rollout * c.minibatches:
                    self.adapters.refresh()
        return UpdateResult(
            self._metrics(passes, advantages), advantages.values, torch.cat([p.kl for p in passes[-c.minibatches :]])
        )

    def _pass(
        self,
        step: int,
        rows: range,
        state: ConditionState,
        trajectories: Trajectories,
        old: Tensor,
        ref: Tensor,
        advantages: Advantages,
        on_policy: bool,
    ) -> _Pass:
        """Accumulate gradients over the conditions `rows`, then one optimizer step unless the guard forbids it."""
        c = self.config
        self.optimizer.zero_grad()
        terms: list[LossTerms] = []
        entropies, mismatches = [], []
        for b in rows:
            one = state.select(slice(b, b + 1))
            queries = guide_queries(self.model, one)
            # The group shares these queries: their gradient is gathered at a leaf and sent back once.
            leaves = [q.detach().requires_grad_() for q in queries]
            for tokens, support, span in self._micro_batches(trajectories, b):
                new, entropy = (t.squeeze(0) for t in self.logprobs(one, leaves, tokens, support))
                if on_policy:
                    mismatches.append(self._mismatch(step, new.detach(), old[b, span]))
                recorded = old[b, span], ref[b, span], advantages.values[b, span]
                term = self._loss(new, *recorded, on_policy)
                keep = guard_trajectories(term.total, term.raw_kl, c.kl_limit).keep
                if keep.all():
                    term.total.sum().backward()
                elif keep.any():
                    # Once more without the dropped ones: 0 * NaN would still poison the gradients.
                    kept_support = None if support is None else support[:, keep]
                    new = self.logprobs(one, leaves, tokens[:, keep], kept_support)[0].squeeze(0)
                    old_kept, ref_kept, advantages_kept = (row[keep] for row in recorded)
                    self._loss(new, old_kept, ref_kept, advantages_kept, on_policy).total.sum().backward()
                terms.append(term)
                entropies.append(entropy)
            wanted = [(q, leaf.grad) for q, leaf in zip(queries, leaves, strict=True) if leaf.grad is not None]
            if wanted:
                torch.autograd.backward([q for q, _ in wanted], [grad for _, grad in wanted])
        total, raw_kl = (torch.cat([getattr(t, name) for t in terms]).detach() for name in ("total", "raw_kl"))
        decision = guard_trajectories(total, raw_kl, c.kl_limit)
        grad_norm = float("nan")
        if not decision.skip_step:
            parameters = self.adapters.parameters()
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(int(decision.keep.sum()))
            grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, c.grad_clip, error_if_nonfinite=False))
            if torch.isfinite(torch.tensor(grad_norm)):
                self.optimizer.step()
        self.optimizer.zero_grad()
        return _Pass(
            terms=terms,
            kl=raw_kl.view(len(rows), -1),
            keep=decision.keep,
            skipped=decision.skip_step or grad_norm != grad_norm,
            grad_norm=grad_norm,
            entropy=torch.cat(entropies),
            mismatch=torch.cat(mismatches) if mismatches else torch.zeros(0),
        )

    def _loss(self, new: Tensor, old: Tensor, ref: Tensor, advantages: Tensor, on_policy: bool) -> LossTerms:
        c = self.config
        return grpo_loss(new, old, ref, advantages, self.weights, c.clip_eps, c.kl_beta, c.kl_estimator, on_policy)

    def _mismatch(self, step: int, new: Tensor, old: Tensor) -> Tensor:
        """|learner - rollout| per token [g, L]; raises if any is above the limit."""
        difference = (new - old).abs()
        worst = int(difference.argmax())
        if not difference.flatten()[worst] <= self.config.mismatch_limit:
            token = worst % new.shape[1]
            scale = int(self.model.lvl_1L[0, token])
            raise LogprobMismatch(
                f"step {step}: at scale {scale} (token {token}) the rollout recorded log-prob {old.flatten()[worst]:.6f}, "
                f"the learner computes {new.flatten()[worst]:.6f} with the same weights; the limit is "
                f"{self.config.mismatch_limit:g}. Sample with --kv-cache exact in fp32, or raise --mismatch-limit"
            )
        return difference

    def _metrics(self, passes: Sequence[_Pass], advantages: Advantages) -> StepMetrics:
        """Means over the kept trajectories of all passes.

        `kl/raw` alone is over every trajectory with a finite KL: if the guard drops all of a policy that has run away,
        the merge controller must still see how far it is (infinitely, if no KL is finite).
        """
        keep = torch.cat([p.keep for p in passes])
        raw_kl = torch.cat([p.kl.flatten() for p in passes])
        raw_kl = raw_kl[raw_kl.isfinite()]
        kl = float(raw_kl.mean()) if len(raw_kl) else float("inf")

        def mean(name: str) -> float:
            values = torch.cat([getattr(t, name).detach() for p in passes for t in p.terms])
            return float(values[keep].mean()) if keep.any() else float("nan")

        kl_tokens = torch.cat([t.kl_tokens for p in passes for t in p.terms])[keep].mean(0)
        entropy = torch.cat([p.entropy for p in passes])[keep].mean(0)
        mismatch = torch.cat([p.mismatch for p in passes])
        metrics = {
            "reward/std": float(advantages.std.mean()),
            "reward/frac_zero_std": advantages.frac_zero_std,
            "kl/raw": kl,
            "loss/policy": mean("policy"),
            "loss/kl": self.config.kl_beta * kl,
            "loss/total": mean("total"),
            "policy/ratio_mean": mean("ratio_mean"),
            "policy/clip_frac": mean("clip_frac"),
            "policy/entropy": float(entropy.mean()),
            "policy/logprob_mismatch_max": float(mismatch.max()),
            "policy/logprob_mismatch_mean": float(mismatch.mean()),
            "grad/norm": passes[-1].grad_norm,
            "guard/dropped": float((~keep).sum()),
            "guard/skipped_steps": float(sum(p.skipped for p in passes)),
        }
        for s, at in enumerate(self.model.arch.scale_slices()):
            metrics[f"kl/per_scale/{s}"] = float(kl_tokens[at].mean())
        return metrics


@dataclass(frozen=True)
class _Pass:
    """One optimizer step: loss terms by micro-batch, raw KL [b, G], and what the guard decided."""

    terms: list[LossTerms]
    kl: Tensor
    keep: Tensor
    skipped: bool
    grad_norm: float
    entropy: Tensor
    mismatch: Tensor
