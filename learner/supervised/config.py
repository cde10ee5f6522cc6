"""The settings of the supervised learners."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from learner.config import Decay
from stylevar.bounds import check_bounds


@dataclass(frozen=True)
class SftStepConfig:
    """Settings of an optimizer step."""

    lr: Annotated[float, Gt(0)] = 5e-4
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """AdamW's decay rates of the gradient's first and second moment."""
    weight_decay: Annotated[float, Ge(0)] = 0.05
    """AdamW's weight decay for the matrices; none for norms, biases, embeddings and attention scales."""
    grad_clip: Annotated[float, Gt(0), Le(math.inf)] = 2.0
    """Largest norm of the gradient; larger gradients are scaled down to it."""
    alpha_jitter: Annotated[float, Ge(0), Lt(0.5)] = 0.0
    """Shift all style weights in each step by a random number in [-j, j], so that --style-strength works at inference."""
    label_smoothing: Annotated[float, Ge(0), Lt(0.5)] = 0.0
    """Label smoothing: share of the target's probability that is spread over all tokens."""
    train_bn: bool = False
    """Train the BatchNorm statistics instead of freezing them; use it when starting from scratch."""
    ema: Decay = 0.0
    """Decay per step of a moving average of the weights, which is then validated and saved; 0 for none."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward and backward pass; weights, logits and loss are always fp32."""
    self_forced: Annotated[float, Ge(0), Le(1)] = 0.0
    """Share of triplets with the model's own guesses in earlier scales, and later targets that correct them."""
    self_forced_rate: Annotated[float, Ge(0), Le(1)] = 0.6
    """In these triplets each token is a guess with a probability drawn between 0 and this."""
    self_forced_temperature: Annotated[float, Gt(0), Le(100)] = 1.0
    """Temperature of these guesses. Choose the one that the model will be sampled with."""
    compile: bool = False
    """Compile each transformer block with torch.compile: minutes before the first step, then faster steps."""
    recompute: bool = False
    """Keep only the input of each transformer block and recompute the rest in the backward pass: less memory, more time."""
    topk: Annotated[int, Ge(1)] = 5
    """Validation measures how often the right token is among this many best guesses."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class TokenizerStepConfig:
    """Settings of an optimizer step of the VQ-VAE."""

    lr: Annotated[float, Gt(0)] = 1e-3
    """Peak learning rate."""
    perceptual_weight: Annotated[float, Ge(0)] = 0.1
    """Weight of the EfficientNet-Lite0 feature distance relative to L1."""
    ema: Decay = 0.995
    """Decay of the moving average of the weights, which is saved."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the encoder, the decoder and the features; the quantizer, the loss and the weights are fp32."""
    compile: bool = False
    """Compile encoder and decoder with torch.compile: minutes before the first step, then faster steps."""

    def __post_init__(self) -> None:
        check_bounds(self)
