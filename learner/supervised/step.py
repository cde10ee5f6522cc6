"""Supervised fine-tuning: one teacher-forced cross-entropy step on (content, style, target) triplets."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from learner.optimizer import load_moments
from learner.parallel import rank_and_world, sum_over_ranks
from learner.supervised.config import SftStepConfig
from learner.supervised.self_forcing import guess, self_forced
from learner.supervised.token_cache import TokenCache, tokenize
from learner.supervised.validation import ValidationSums
from stylevar.conditions import check_tokens, encode_conditions, guide_queries, teacher_forced
from stylevar.contracts import ConditionBatch
from stylevar.images import u8_to_pm1
from stylevar.sampling import trajectory_seed
from stylevar.transformer import StyleVAR

ALPHA_RANGE = (0.01, 0.99)
_UNDECAYED = ("pos_start", "pos_1LC", "lvl_embed", "scale_mul_1H11", "ada_gss")


@dataclass(frozen=True)
class SftMetrics:
    """Results of a step: mean cross-entropy in nats per token, share of tokens with the right best guess, gradient norm."""

    loss: float
    accuracy: float
    grad_norm: float


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's two parameter groups: matrices and convolutions with `weight_decay`, all others without."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            special = any(part in _UNDECAYED for part in name.split("."))
            groups[parameter.ndim > 1 and not special].append(parameter)
    return [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]


@dataclass(frozen=True)
class Inputs:
    """A batch in the form that the model takes.

    style_pm1, content_pm1   fp32 [B, 3, S, S] in [-1, 1]
    guides                   tokens of the style and then the content images, one int64 [2B, p*p] per scale
    target                   int64 [B, L]
    """

    style_pm1: Tensor
    content_pm1: Tensor
    guides: list[Tensor]
    target: Tensor

    def select(self, rows: Tensor) -> Inputs:
        """Some of the triplets, int64 [b]."""
        both = torch.cat([rows, rows + len(self.target)])
        guides = [scale[both] for scale in self.guides]
        return Inputs(self.style_pm1[rows], self.content_pm1[rows], guides, self.target[rows])


class TeacherForced(nn.Module):
    """The model as a function of a batch, for data parallelism to wrap."""

    def __init__(self, model: StyleVAR, recompute: bool = False) -> None:
        super().__init__()
        self.model, self.recompute = model, recompute

    def forward(
        self, style_pm1: Tensor, content_pm1: Tensor, guides: list[Tensor], prefix: Tensor, alphas: Tensor | None
    ) -> Tensor:
        """Logits fp32 [B, L, V] of L tokens, each given the earlier scales of `prefix` int64 [B, L].

        `guides` as in `encode_conditions`.
        """
        model = self.model
        state = encode_conditions(model, style_pm1, content_pm1, guides)
        queries = guide_queries(model, state)
        return teacher_forced(model, state, queries, prefix.unsqueeze(1), alphas, self.recompute).squeeze(1)


class SftLearner:
    """Trains all of `model` except its tokenizer; in an initialised process group, together with the other ranks."""

    def __init__(self, model: StyleVAR, config: SftStepConfig, tokens: TokenCache | None = None) -> None:
        """`tokens` caches the tokens of images that occur repeatedly."""
        self.model, self.config = model, config
        self.tokens = tokens
        self.updates = 0
        self.average = None
        if config.ema:
            # The frozen tokenizer is shared, not copied.
            self.average = copy.deepcopy(model, {id(model.vae): model.vae}).requires_grad_(False).eval()
        groups = decay_groups(model, config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
        self.rank, self.world = rank_and_world()
        forward = TeacherForced(model, config.recompute)
        if config.compile:  # in place, so that the names of weights do not change
            for block in model.blocks:
                block.compile()
        self._parallel: Any = forward if self.world == 1 else DistributedDataParallel(forward)

    @property
    def best_model(self) -> StyleVAR:
        """The model to validate, sample from and save: the moving average if there is one. In eval mode."""
        return self.model.eval() if self.average is None else self.average

    def step(self, micro_batches: Sequence[ConditionBatch], lr: float, seed: int) -> SftMetrics:
        """One optimizer step on all triplets of all micro-batches, which have the same number on every process.

        A pure function of weights, triplets and `seed`. If the gradient is not finite, only its norm is reported and
        nothing changes.
        """
        self._train_mode()
        alphas = self._jittered_alphas(seed)
        total = sum(len(batch) for batch in micro_batches)
        sums = torch.zeros(2, dtype=torch.float64, device=self.model.device)
        self.optimizer.zero_grad(set_to_none=True)
        for number, batch in enumerate(micro_batches):
            torch.manual_seed(trajectory_seed(seed, self.rank, "drop path", number))
            share = len(batch) / total
            # Gradients are synchronised only once, with the last micro-batch.
            last = number == len(micro_batches) - 1
            with nullcontext() if last or self.world == 1 else self._parallel.no_sync():
                inputs = self._inputs(batch)
                prefix, target = self._self_forced(inputs, trajectory_seed(seed, self.rank, "self-forced", number))
                logits = self._forward(self._parallel, inputs, prefix, alphas)
                loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), label_smoothing=self.config.label_smoothing)
                (loss * share).backward()
            right = (logits.detach().argmax(-1) == target).double().mean()
            sums += torch.stack([loss.detach().double(), right]) * share
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip))
        if math.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            self.updates += 1
            self._update_average()
        loss_mean, accuracy = (sum_over_ranks(sums) / self.world).tolist()
        return SftMetrics(loss_mean, accuracy, norm)

    @torch.no_grad()
    def validate(self, batch: ConditionBatch) -> ValidationSums:
        """Evaluate `best_model` on B held-out triplets, without jitter and label smoothing."""
        inputs = self._inputs(batch)
        logits = self._forward(TeacherForced(self.best_model), inputs, inputs.target, None)
        return ValidationSums.of(logits, inputs.target, self.model.arch.scale_slices(), self.config.topk)

    def no_validation(self) -> ValidationSums:
        """Zero sums to start from."""
        return ValidationSums(torch.zeros(4, self.model.arch.scales, dtype=torch.float64, device=self.model.device))

    def state(self) -> dict[str, Any]:
        """The state that a resumed run needs besides the weights: optimizer moments and the number of updates."""
        return {"optimizer": self.optimizer.state_dict(), "updates": self.updates}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state`; the caller loads the weights into `model` and `average`."""
        load_moments(self.optimizer, state["optimizer"])
        self.updates = state["updates"]

    def _inputs(self, batch: ConditionBatch) -> Inputs:
        device = self.model.device
        style_idx, content_idx, target_idx = self._tokens_of(batch)
        guides = [torch.cat(pair) for pair in zip(style_idx, content_idx, strict=True)]
        style, content = (u8_to_pm1(image.to(device)) for image in (batch.style, batch.content))
        return Inputs(style, content, guides, torch.cat(target_idx, dim=1))

    def _forward(self, forward: nn.Module, inputs: Inputs, prefix: Tensor, alphas: Tensor | None) -> Tensor:
        """Logits fp32 [B, L, V]."""
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            return forward(inputs.style_pm1, inputs.content_pm1, inputs.guides, prefix, alphas)

    @torch.no_grad()
    def _self_forced(self, inputs: Inputs, seed: int) -> tuple[Tensor, Tensor]:
        """Prefixes and targets int64 [B, L]; a share of them has guesses of the model, and targets that correct them."""
        config, true = self.config, inputs.target
        if not config.self_forced:
            return true, true
        generator = torch.Generator(true.device).manual_seed(seed)
        chosen = torch.rand(len(true), generator=generator, device=true.device) < config.self_forced
        rows = chosen.nonzero().flatten()
        if not len(rows):
            return true, true
        some = inputs.select(rows)
        logits = self._forward(TeacherForced(self.best_model), some, some.target, None)
        self._train_mode()
        rate = config.self_forced_rate * torch.rand(len(rows), 1, generator=generator, device=true.device)
        replaced = torch.rand(some.target.shape, generator=generator, device=true.device) < rate
        guesses = guess(logits / config.self_forced_temperature, generator)
        forced = self_forced(self.model.vae.quantize, some.target, guesses, replaced)
        prefix, target = true.clone(), true.clone()
        prefix[rows], target[rows] = forced
        return prefix, target

    def _tokens_of(self, batch: ConditionBatch) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Tokens of style, content and target, int64 [B, p*p] per scale: from the batch, the cache or the tokenizer."""
        if batch.tokens is not None:
            check_tokens(self.model, batch.tokens)
            known = batch.tokens.to(self.model.device, torch.int64)
            content, style, target = ([known[:, role, s] for s in self.model.arch.scale_slices()] for role in range(3))
            return style, content, target
        assert batch.target is not None
        images = torch.cat([batch.style, batch.content, batch.target])
        idx_Bl = tokenize(self.model.vae, images) if self.tokens is None else self.tokens(images)
        thirds = [idx.chunk(3) for idx in idx_Bl]
        style, content, target = ([third[role] for third in thirds] for role in range(3))
        return style, content, target

    def _train_mode(self) -> None:
        self.model.train()
        if not self.config.train_bn:
            for module in self.model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def _jittered_alphas(self, seed: int) -> Tensor | None:
        """Randomly shifted style weights, the same in all processes."""
        jitter = self.config.alpha_jitter
        if not jitter:
            return None
        generator = torch.Generator().manual_seed(trajectory_seed(seed, 0, "alphas", 0))
        shift = (2 * torch.rand((), generator=generator).item() - 1) * jitter
        low, high = ALPHA_RANGE
        return self.model.alphas(values=[min(max(a + shift, low), high) for a in self.model.arch.alphas])

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average is None:
            return
        # A new average would be mostly initial weights, so its decay starts small and grows to the configured one.
        keep = min(self.config.ema, self.updates / (10 + self.updates))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - keep)
        for own, new in zip(self.average.modules(), self.model.modules(), strict=True):
            if isinstance(own, nn.BatchNorm2d) and isinstance(new, nn.BatchNorm2d):
                for mine, theirs in zip(own.buffers(), new.buffers(), strict=True):
                    if mine.is_floating_point():
                        mine.lerp_(theirs, 1 - keep)
                    else:
                        mine.copy_(theirs)
