"""Supervised fine-tuning: one teacher-forced cross-entropy step on (content, style, target) triplets."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylevar.conditions import encode_conditions, guide_queries, teacher_forced
from stylevar.contracts import ConditionBatch
from stylevar.errors import UserError
from stylevar.images import u8_to_pm1
from stylevar.transformer import StyleVAR
from stylevar.vqvae import VQVAE

ALPHA_RANGE = (0.01, 0.99)
_UNDECAYED = ("pos_start", "pos_1LC", "lvl_embed", "scale_mul_1H11", "ada_gss")


@dataclass(frozen=True)
class SftStepConfig:
    """How the weights follow the gradient."""

    lr: float = 5e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay of the gradient's first and second moment."""
    weight_decay: float = 0.05
    """AdamW's weight decay of the matrices; none on norms, biases, embeddings and attention scales."""
    grad_clip: float = 2.0
    """The gradient is scaled down to this norm."""
    alpha_jitter: float = 0.0
    """Each step shifts all style weights by a number drawn from [-j, j], so that --style-strength works at inference."""
    label_smoothing: float = 0.0
    """Share of the training target's probability that is spread over all tokens."""
    train_bn: bool = False
    """BatchNorm statistics frozen by default; train them when starting from scratch."""
    ema: float = 0.0
    """Decay per step of a moving average of the weights, which is then what is validated and saved; 0 for none."""

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.grad_clip <= 0 or self.weight_decay < 0:
            raise UserError(
                f"--lr {self.lr} --grad-clip {self.grad_clip} --weight-decay {self.weight_decay}: "
                "the first two must be positive, the last at least 0"
            )
        for name, bound in (("alpha_jitter", 0.5), ("label_smoothing", 0.5), ("ema", 1.0)):
            if not 0 <= getattr(self, name) < bound:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must lie in [0, {bound})")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"--betas {self.betas[0]} {self.betas[1]}: both must lie in [0, 1)")


@dataclass(frozen=True)
class SftMetrics:
    """One step: mean cross-entropy in nats per token, share of tokens whose best guess is right, gradient norm."""

    loss: float
    accuracy: float
    grad_norm: float


@dataclass(frozen=True)
class SftValidation:
    """The same of a held-out batch; `accuracy_per_scale` has one entry per scale, coarse to fine."""

    loss: float
    accuracy: float
    accuracy_per_scale: tuple[float, ...]


class TokenCache:
    """VQ tokens of images seen before, in memory, under a hash of the pixels: any augmented image has its own entry.

    An image that is not known yet is tokenised with the others of its call. Rounding may depend on that company, so fill
    the cache in a fixed order (`add`) where runs are to repeat bit for bit.
    """

    def __init__(self, vae: VQVAE) -> None:
        self.vae = vae
        self._tokens: dict[bytes, Tensor] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, images_u8: Tensor) -> list[bytes]:
        """Tokenise what is new among the images, uint8 [N, 3, H, W]; the N keys under which tokens are kept."""
        keys = [hashlib.blake2b(image.numpy(), digest_size=16).digest() for image in images_u8.cpu().contiguous()]
        new = {key: row for row, key in enumerate(keys) if key not in self._tokens}
        if new:
            found = torch.cat(tokenize(self.vae, images_u8[list(new.values())]), dim=1).to("cpu", torch.int16)
            self._tokens.update(zip(new, found, strict=True))
        return keys

    def __call__(self, images_u8: Tensor) -> list[Tensor]:
        """Images uint8 [N, 3, H, W] -> one int64 [N, p*p] per scale."""
        rows = torch.stack([self._tokens[key] for key in self.add(images_u8)])
        device = self.vae.quantize.embedding.weight.device
        return list(rows.to(device, torch.int64).split([p * p for p in self.vae.config.patch_nums], dim=1))


def tokenize(vae: VQVAE, images_u8: Tensor) -> list[Tensor]:
    """Images uint8 [N, 3, H, W] -> one int64 [N, p*p] per scale."""
    return vae.img_to_idxBl(u8_to_pm1(images_u8.to(vae.quantize.embedding.weight.device)))


def cosine_lr(step: int, steps: int, warmup: int, peak: float, end: float = 0.0) -> float:
    """Learning rate of `step` (0 ... steps - 1): linear warm-up over `warmup` steps, then a cosine from `peak` to `end`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return end + 0.5 * (peak - end) * (1 + math.cos(math.pi * min(1.0, done)))


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's two parameter groups: matrices and convolutions with `weight_decay`, all others with none."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            special = any(part in _UNDECAYED for part in name.split("."))
            groups[parameter.ndim > 1 and not special].append(parameter)
    return [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]


class SftLearner:
    """Trains all of `model` except its tokenizer. Random numbers (drop path, jitter) come from torch's global stream."""

    def __init__(self, model: StyleVAR, config: SftStepConfig, tokens: TokenCache | None = None) -> None:
        """`tokens` spares the tokenizer on images that come again."""
        self.model, self.config = model, config
        self.tokens = tokens
        self.updates = 0
        self.average = None
        if config.ema:
            # The frozen tokenizer is shared, not copied.
            self.average = copy.deepcopy(model, {id(model.vae): model.vae}).requires_grad_(False).eval()
        groups = decay_groups(model, config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)

    @property
    def best_model(self) -> StyleVAR:
        """What is validated, sampled from and saved: the average if there is one. In eval mode."""
        return self.model.eval() if self.average is None else self.average

    def step(self, batch: ConditionBatch, lr: float) -> SftMetrics:
        """One optimizer step on B triplets. A gradient that is not finite changes nothing; its norm is reported."""
        self._train_mode()
        logits, target = self._forward(self.model, batch, self._jittered_alphas())
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), label_smoothing=self.config.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip))
        if math.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            self.updates += 1
            self._update_average()
        accuracy = (logits.detach().argmax(-1) == target).float().mean()
        return SftMetrics(float(loss.detach()), float(accuracy), norm)

    @torch.no_grad()
    def validate(self, batch: ConditionBatch) -> SftValidation:
        """Loss and accuracy of `best_model` on B held-out triplets, without jitter and smoothing."""
        logits, target = self._forward(self.best_model, batch, None)
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        right = (logits.argmax(-1) == target).float().mean(0)
        per_scale = [float(right[at].mean()) for at in self.model.arch.scale_slices()]
        return SftValidation(float(loss), float(right.mean()), tuple(per_scale))

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides the weights: optimizer moments and the number of updates."""
        return {"optimizer": self.optimizer.state_dict(), "updates": self.updates}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state`; the weights are loaded into `model` and `average` by the caller."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]

    def _forward(self, model: StyleVAR, batch: ConditionBatch, alphas: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits fp32 [B, L, V] and the target's tokens int64 [B, L]."""
        images = torch.cat([batch.style, batch.content, batch.target])
        idx_Bl = tokenize(model.vae, images) if self.tokens is None else self.tokens(images)
        guides, target = 2 * len(batch), torch.cat([idx[2 * len(batch) :] for idx in idx_Bl], dim=1)
        style, content = (u8_to_pm1(image.to(model.device)) for image in (batch.style, batch.content))
        state = encode_conditions(model, style, content, [idx[:guides] for idx in idx_Bl])
        logits = teacher_forced(model, state, guide_queries(model, state), target.unsqueeze(1), alphas)
        return logits.squeeze(1), target

    def _train_mode(self) -> None:
        self.model.train()
        if not self.config.train_bn:
            for module in self.model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def _jittered_alphas(self) -> Tensor | None:
        jitter = self.config.alpha_jitter
        if not jitter:
            return None
        shift = (2 * torch.rand(()).item() - 1) * jitter
        low, high = ALPHA_RANGE
        return self.model.alphas(values=[min(max(a + shift, low), high) for a in self.model.arch.alphas])

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average is None:
            return
        # A young average would be mostly the initial weights: it starts short and lengthens to the wanted decay.
        keep = min(self.config.ema, self.updates / (10 + self.updates))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - keep)
        for own, new in zip(self.average.modules(), self.model.modules(), strict=True):
            if isinstance(own, nn.BatchNorm2d) and isinstance(new, nn.BatchNorm2d):
                for mine, theirs in zip(own.buffers(), new.buffers(), strict=True):
                    if mine.is_floating_point():
                        mine.lerp_(theirs, 1 - keep)
                    else:
                        mine.copy_(theirs)
