"""One GRPO step: reference pass, clipped PANW-weighted loss in micro-batches, guarded optimizer step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from learner.credit.base import Credit, CreditOptions
from learner.credit.build import METHODS
from learner.grpo.config import LearnerConfig
from learner.grpo.guard import may_teach, too_few_left
from learner.grpo.half_gradients import HalfGradients, SignalToNoise
from learner.grpo.kl import MAX_LOG_RATIO, kl_estimate
from learner.grpo.loss import LossTerms, code_loss, grpo_loss
from learner.grpo.panw import panw_weights
from learner.grpo.report import PassReport, TrajectoryStats, step_metrics
from learner.lesson import Lesson, UpdateResult
from learner.optimizer import build_optimizer, load_moments
from learner.parallel import gather_over_ranks, sum_gradients, sum_over_ranks
from learner.schedule import rate
from stylevar.adapters import Adapters
from stylevar.clock import Clock, untimed
from stylevar.conditions import ConditionState, guide_queries, teacher_forced_features
from stylevar.contracts import Trajectories
from stylevar.logprobs import CodeValues, TokenTerms, token_terms
from stylevar.recompute import recomputed
from stylevar.transformer import StyleVAR


class LogprobMismatch(RuntimeError):
    """Sampler and learner disagree on log-probs at equal weights, so the update would be wrong."""


class Freshness(Enum):
    """The relation of the policy to the one that sampled its trajectories."""

    ON_POLICY = "on policy"
    """It sampled them: the ratio is exactly 1, and the log-probs must match the recorded ones."""
    FIRST_PASS = "first pass"
    """First pass over them, but older weights sampled them or an earlier minibatch has changed the weights."""
    LATER_PASS = "later pass"
    """A later pass: it has already been trained on them."""


class _Recorded(NamedTuple):
    """The recorded data of some trajectories of a group: [g, L] each, except the advantages [g, 1 or L] and, for the full
    KL, the reference [g, L, C]."""

    old: Tensor
    reference: Tensor
    advantages: Tensor
    codes: CodeValues | None
    importance: Tensor | None

    @property
    def spread(self) -> Tensor | None:
        """The magnitude of each token's advantage, [g, L]; None unless each token has its own."""
        return self.advantages.abs() if self.advantages.shape[1] > 1 else None

    def only(self, keep: Tensor) -> _Recorded:
        importance = None if self.importance is None else self.importance[keep]
        codes = None if self.codes is None else replace(self.codes, slopes=self.codes.slopes[:, keep])
        return _Recorded(self.old[keep], self.reference[keep], self.advantages[keep], codes, importance)


@dataclass(frozen=True)
class _Task:
    """A lesson with its credit, its recorded log-probs, and the proximal ones once they are computed (fp32 [B, G, L])."""

    lesson: Lesson
    credit: Credit
    old: Tensor
    proximal: Tensor


class GrpoLearner:
    """Holds the adapters' optimizer and updates the adapters from scored trajectories."""

    def __init__(
        self,
        adapters: Adapters,
        config: LearnerConfig,
        temperature: float = 1.0,
        clock: Clock = untimed,
        steps: int | None = None,
    ) -> None:
        """`clock` times the phases "credit", "update_forward", "update_backward", "optimizer" and "effective_weights".

        `steps` is the length of the run, needed for a learning-rate schedule.
        """
        self._steps = steps
        self._clock = clock
        self.adapters, self.model, self.config, self.temperature = adapters, adapters.model, config, temperature
        self.mismatch_limit = config.mismatch_limit or usual_mismatch(self.model, temperature)
        self.weights = panw_weights(self.model.arch.patch_nums, config.panw_gamma).to(self.model.device)
        options = CreditOptions(
            config.adv_norm, config.credit_curvature, config.credit_batch, config.credit_middle, config.credit_eta
        )
        self.credit = METHODS[config.credit].build(self.model.vae, options)
        self._signal = SignalToNoise()
        self._backoff = 1.0
        self.reset_optimizer()

    def reset_optimizer(self) -> None:
        """Reset the optimizer, as after a merge or a rollback."""
        c = self.config
        settings = {"lr": c.lr, "betas": c.adam_betas, "weight_decay": c.weight_decay}
        self.optimizer = build_optimizer(self.adapters.parameters(), c.optimizer_device, **settings)
        # Allocated now and kept. Allocated during an update, they would be scattered among short-lived activations and
        # fragment the memory.
        for parameter in self.adapters.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def back_off(self) -> None:
        """Lower the learning rate for the rest of the run: it was too high if a rollback was needed."""
        self._backoff *= self.config.lr_backoff

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimizer, the learning rate, the credit and the signal-to-noise average."""
        credit = {f"credit.{name}": value for name, value in self.credit.state_dict().items()}
        return {**self.optimizer.state_dict(), **credit, "signal": self._signal.sums, "backoff": self._backoff}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`; earlier versions saved only the optimizer's state."""
        rest = dict(state)
        credit = {name.removeprefix("credit."): rest.pop(name) for name in state if name.startswith("credit.")}
        if credit:
            self.credit.load_state_dict(credit)
        if "signal" in rest:
            self._signal.sums = rest.pop("signal")
        self._backoff = rest.pop("backoff", 1.0)
        load_moments(self.optimizer, rest)

    def features(self, state: ConditionState, queries: Sequence[Tensor], tokens: Tensor) -> Tensor:
        """The head's input for `tokens` [B, G, L], fp32 [B, G, L, C]."""
        return self.model.head_input(teacher_forced_features(self.model, state, queries, tokens), state.head_adaln)

    def logprobs(
        self, state: ConditionState, queries: Sequence[Tensor], tokens: Tensor, support: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Log-probs of `tokens` [B, G, L] and the entropies of their distributions, fp32 [B, G, L] each."""
        terms = token_terms(self.model.head, self.features(state, queries, tokens), tokens, self.temperature, support)
        return terms.logp, terms.entropy

    def terms_to_learn(
        self,
        state: ConditionState,
        queries: Sequence[Tensor],
        tokens: Tensor,
        support: Tensor | None,
        values: CodeValues | None = None,
        reference: Tensor | None = None,
    ) -> TokenTerms:
        """`token_terms` of `tokens` [B, G, L] for a backward pass; with `recompute` it recomputes the blocks."""
        with recomputed(self.model.blocks) if self.config.recompute else nullcontext():
            x = self.features(state, queries, tokens)
        return token_terms(self.model.head, x, tokens, self.temperature, support, values, reference)

    @torch.no_grad()
    def reference(self, state: ConditionState, trajectories: Trajectories) -> Tensor:
        """The base policy's result for the trajectories, in the form of `Lesson.reference`."""
        rows, full = [], self.config.kl_estimator == "full"
        with self.adapters.off():
            for b in range(len(trajectories.keys)):
                one = state.select(slice(b, b + 1))
                queries = guide_queries(self.model, one)
                parts = [
                    self.features(one, queries, t) if full else self.logprobs(one, queries, t, s)[0]
                    for t, s, _ in self._micro_batches(trajectories, b)
                ]
                rows.append(torch.cat(parts, dim=1))
        return torch.cat(rows)

    def _micro_batches(self, trajectories: Trajectories, b: int) -> list[tuple[Tensor, Tensor | None, slice]]:
        """Tokens [1, g, L], support, and their slice in the group of condition b."""
        group = trajectories.tokens.shape[1]
        size = self.config.micro_batch or group
        spans = [slice(g, min(g + size, group)) for g in range(0, group, size)]
        support = trajectories.support
        return [(trajectories.tokens[b : b + 1, g], None if support is None else support[b : b + 1, g], g) for g in spans]

    def update(self, step: int, minibatches: Sequence[Sequence[Lesson]], fresh: bool = True) -> UpdateResult:
        """One GRPO step: one optimizer step on each minibatch, for the configured number of passes.

        In a process group each process passes its own lessons, in the same number of minibatches; some minibatches may be
        empty. All processes end with the same adapters.

        Args:
            step: the step's number, for the learning rate and for error messages.
            fresh: the trajectories come from the current weights; the ratio in the first pass is then exactly 1.
        Raises:
            LogprobMismatch: fresh, but the first pass's log-probs differ from the recorded ones by more than
                `mismatch_limit`.
        """
        c = self.config
        with self._clock("credit"):
            credits = iter(self.credit.assign([lesson for lessons in minibatches for lesson in lessons]))
        tasks = [[self._task(lesson, next(credits)) for lesson in lessons] for lessons in minibatches]
        passes: list[PassReport] = []
        for number in range(c.updates_per_rollout):
            for some in tasks:
                if passes:
                    with self._clock("effective_weights"):
                        self.adapters.refresh()
                freshness = Freshness.FIRST_PASS if number == 0 else Freshness.LATER_PASS
                passes.append(self._pass(step, some, Freshness.ON_POLICY if fresh and not passes else freshness))
        mine = [task.credit.trajectory for some in tasks for task in some]
        everyone = gather_over_ranks((passes, mine))
        advantages = [a for _, all_of_rank in everyone for a in all_of_rank]
        metrics = {"lr": self._learning_rate(step)}
        metrics |= step_metrics([p for p, _ in everyone], advantages, c.kl_beta, self.model.arch.scales)
        if "credit/half_cosine" in metrics:
            metrics["credit/snr"] = self._signal.update(metrics["credit/half_cosine"])
        kl = torch.cat([p.stats.column("raw_kl") for p in passes[-c.minibatches :]])
        values = torch.cat([a.values.cpu() for a in mine]) if mine else torch.zeros(0, 1)
        return UpdateResult(metrics, not all(p.skipped for p in passes), values, kl.view(values.shape))

    def _task(self, lesson: Lesson, credit: Credit) -> _Task:
        rows = lesson.trajectories
        old = rows.logp if rows.support is None else rows.logp - rows.kept_mass
        return _Task(lesson, credit, old, torch.empty_like(old))

    def _pass(self, step: int, tasks: Sequence[_Task], freshness: Freshness) -> PassReport:
        """Accumulate gradients over the lessons of a minibatch, then take one optimizer step unless the guard skips it."""
        c = self.config
        self.optimizer.zero_grad(set_to_none=False)
        stats = TrajectoryStats.empty()
        halves = HalfGradients(self.adapters.parameters(), sum(len(task.lesson.trajectories.keys) for task in tasks))
        for task in tasks:
            for b in range(len(task.lesson.trajectories.keys)):
                self._accumulate(step, task, b, freshness, stats)
                halves.added_condition()
        keep = may_teach(stats.column("total"), stats.column("raw_kl"), c.kl_limit)
        counts = torch.tensor([float(keep.sum()), float(keep.numel())], device=self.model.device)
        kept, seen = (int(count) for count in sum_over_ranks(counts).tolist())
        skipped, grad_norm, cosine = too_few_left(kept, seen), float("nan"), halves.cosine()
        with self._clock("optimizer"):
            if not skipped:
                grad_norm = self._optimize(step, kept)
                skipped = not math.isfinite(grad_norm)
        return PassReport(stats, keep, skipped, grad_norm, cosine)

    def _optimize(self, step: int, kept: int) -> float:
        """Step on the mean gradient over the `kept` trajectories of all ranks if its norm is finite; returns the norm."""
        self.optimizer.param_groups[0]["lr"] = self._learning_rate(step)
        parameters = self.adapters.parameters()
        sum_gradients(parameters)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.div_(kept)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.grad_clip, error_if_nonfinite=False)
        if math.isfinite(norm):
            self.optimizer.step()
        return float(norm)

    def _learning_rate(self, step: int) -> float:
        c = self.config
        if self._steps is None and c.lr_schedule != "constant":
            raise ValueError(f"lr_schedule {c.lr_schedule!r} needs the run's number of steps")
        return self._backoff * c.lr * rate(c.lr_schedule, step, self._steps or 0, c.lr_warmup, c.lr_end)

    def _accumulate(self, step: int, task: _Task, b: int, freshness: Freshness, stats: TrajectoryStats) -> None:
        """Add the gradients of one condition's group, summed over its trajectories."""
        c, lesson, scales = self.config, task.lesson, self.model.arch.scale_slices()
        one = lesson.state.select(slice(b, b + 1))
        with self._clock("update_forward"):
            queries = guide_queries(self.model, one)
        # The group shares these queries: accumulate their gradient at a leaf and backpropagate it once.
        leaves = [q.detach().requires_grad_() for q in queries]
        for tokens, support, span in self._micro_batches(lesson.trajectories, b):
            recorded = self._recorded(task, b, span)
            with self._clock("update_forward"):
                new = self._terms(one, leaves, tokens, support, recorded)
            logp = new.logp.squeeze(0)
            mismatch = self._mismatch(step, logp.detach(), recorded.old) if freshness is Freshness.ON_POLICY else None
            if c.importance_cap:
                if freshness is not Freshness.LATER_PASS:
                    task.proximal[b, span] = logp.detach()
                proximal = task.proximal[b, span]
                importance = importance_weights(proximal, recorded.old, c.importance_cap)
                recorded = recorded._replace(old=proximal, importance=importance)
            at_one = freshness is Freshness.ON_POLICY or (freshness is Freshness.FIRST_PASS and c.importance_cap > 0)
            term = self._loss(new, recorded, at_one)
            keep = may_teach(term.total, term.raw_kl, c.kl_limit)
            with self._clock("update_backward"):
                if c.kl_beta == 0 and recorded.codes is None and not recorded.advantages.any():
                    pass  # equal rewards and no KL penalty: the gradient is exactly zero
                elif keep.all():
                    term.total.sum().backward()
                elif keep.any():
                    # Repeat without the dropped trajectories: 0 * NaN would still be NaN in the gradients.
                    kept_support, kept = None if support is None else support[:, keep], recorded.only(keep)
                    again = self._terms(one, leaves, tokens[:, keep], kept_support, kept)
                    self._loss(again, kept, at_one).total.sum().backward()
            spread = recorded.spread if new.spread is None else new.spread.squeeze(0)
            columns = {"entropy": new.entropy.squeeze(0), "mismatch": mismatch, "importance": recorded.importance}
            stats.add(term, scales, **columns, credit=spread)
        wanted = [(q, leaf.grad) for q, leaf in zip(queries, leaves, strict=True) if leaf.grad is not None]
        if wanted:
            with self._clock("update_backward"):
                torch.autograd.backward([q for q, _ in wanted], [grad for _, grad in wanted])

    def _recorded(self, task: _Task, b: int, span: slice) -> _Recorded:
        """The recorded data of some trajectories of condition b."""
        credit = task.credit
        codes = None if credit.codes is None else replace(credit.codes, slopes=credit.codes.slopes[b : b + 1, span])
        return _Recorded(task.old[b, span], task.lesson.reference[b, span], credit.tokens[b, span], codes, None)

    def _terms(
        self, one: ConditionState, leaves: Sequence[Tensor], tokens: Tensor, support: Tensor | None, recorded: _Recorded
    ) -> TokenTerms:
        reference = recorded.reference[None] if self.config.kl_estimator == "full" else None
        return self.terms_to_learn(one, leaves, tokens, support, recorded.codes, reference)

    def _loss(self, new: TokenTerms, recorded: _Recorded, on_policy: bool) -> LossTerms:
        c, logp = self.config, new.logp.squeeze(0)
        full = None if new.kl is None else new.kl.squeeze(0)
        if new.gain is not None:
            kl = kl_estimate(logp, recorded.reference, c.kl_estimator) if full is None else full
            return code_loss(new.gain.squeeze(0), kl, self.weights, c.kl_beta)
        return grpo_loss(
            logp,
            recorded.old,
            recorded.reference,
            recorded.advantages,
            weights=self.weights,
            clip_eps=c.clip_eps,
            beta=c.kl_beta,
            kl_kind=c.kl_estimator,
            on_policy=on_policy,
            importance=recorded.importance,
            kl_tokens=full,
        )

    def _mismatch(self, step: int, new: Tensor, old: Tensor) -> Tensor:
        """|learner - rollout| per token [g, L]; raises LogprobMismatch if any is above the limit."""
        difference = (new - old).abs()
        worst = int(difference.argmax())
        if not difference.flatten()[worst] <= self.mismatch_limit:
            token = worst % new.shape[1]
            scale = int(self.model.lvl_1L[0, token])
            raise LogprobMismatch(
                f"step {step}: at scale {scale} (token {token}) the rollout recorded log-prob {old.flatten()[worst]:.6f}, "
                f"the learner computes {new.flatten()[worst]:.6f} with the same weights; the limit is "
                f"{self.mismatch_limit:g}. Sample with --kv-cache exact in fp32, or raise --mismatch-limit"
            )
        return difference


def usual_mismatch(model: StyleVAR, temperature: float = 1.0) -> float:
    """An upper bound of the log-prob differences that rounding causes, for the precision of `model`.

    Sampling divides logits by the temperature, and a low one enlarges their errors.
    """
    rounded = model.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    at_one = 0.5 if model.compute_dtype == torch.bfloat16 else 0.05 if rounded else 1e-4
    return at_one / min(1.0, temperature)


def importance_weights(proximal: Tensor, behaviour: Tensor, cap: float) -> Tensor:
    """min(pi_proximal / pi_behaviour, cap) per token, from log-probs of any shape: the ratio of the policy at the start of
    an update to the older one that sampled (truncated importance sampling, Ionides 2008)."""
    return (proximal - behaviour).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp().clamp_max(cap)
