"""Blended cross-attention: style and content queries over the keys and values of the target tokens.

Shapes: B conditions, G trajectories of each, T tokens (of one scale, or all L), C width, H heads of 64. Queries are ordered
by scale, with a scale's style queries before its content queries, so that queries that attend together are contiguous.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylevar.config import HEAD_DIM
from stylevar.lowrank import project
from stylevar.norm import modulate, unit

MAX_SCALE_MUL = math.log(100)
SHORT = 256
"""Number of keys up to which the scores may be kept for a backward pass."""


class Span(NamedTuple):
    """Scales whose queries attend together to the first `keys` keys.

    `tokens` holds the number of tokens of each scale, t in total; `bias` [2t, keys] is added to the scores.
    """

    tokens: tuple[int, ...]
    keys: int
    bias: Tensor | None = None


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k^T + bias) v for q [N, H, T, 64] and k, v [N, H, K, 64]; `bias` [T, K] is added to the scores."""
    training = q.requires_grad and torch.is_grad_enabled()
    if training and q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[-2] <= SHORT:
        # The fused kernel's backward pass is slow in bfloat16: with AMX, this takes a fifth to two thirds of the time.
        scores = q @ k.transpose(-1, -2)
        return torch.softmax(scores if bias is None else scores + bias, dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)


class BlendedAttention(nn.Module):
    """Queries from the style and the content guide over the same keys and values from the target."""

    q_bias_guide: nn.Parameter
    v_bias_target: nn.Parameter

    def __init__(self, width: int, heads: int, l2_norm: bool) -> None:
        super().__init__()
        self.heads, self.l2_norm = heads, l2_norm
        if l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), 4.0).log())
        for side in ("guide", "target"):
            # The guide gives no values and the target no queries: those biases exist only because checkpoints contain them.
            self.register_parameter(f"q_bias_{side}", nn.Parameter(torch.zeros(width), requires_grad=side == "guide"))
            self.register_parameter(f"v_bias_{side}", nn.Parameter(torch.zeros(width), requires_grad=side == "target"))
            self.register_buffer(f"zero_k_bias_{side}", torch.zeros(width))
        self.mat_qkv_guide = nn.Linear(width, 3 * width, bias=False)
        self.mat_qkv_target = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        # Only these rows of the two matrices are ever multiplied.
        self.q_rows, self.kv_rows = slice(0, width), slice(width, 3 * width)

    @property
    def used_rows(self) -> dict[str, slice]:
        """{layer name: rows in use} of the layers that are only partly used."""
        return {"mat_qkv_guide": self.q_rows, "mat_qkv_target": self.kv_rows}

    def queries(self, guides: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Guides [B, 2T, C] and their modulation [B, 1, C] -> [B, H, 2T, 64], normalised and scaled."""
        q = project(self.mat_qkv_guide, guides, self.q_rows, self.q_bias_guide, modulate, (scale, shift))
        q = q.unflatten(-1, (self.heads, HEAD_DIM)).transpose(1, 2)
        if not self.l2_norm:
            return q * (0.25 / math.sqrt(HEAD_DIM))
        # In fp32: the scale, up to 100, would amplify rounding errors.
        scaled = F.normalize(q.float(), dim=-1) * self.scale_mul_1H11.clamp_max(MAX_SCALE_MUL).exp()
        return scaled.to(q.dtype)

    def keys_values(self, x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Target [B, G, T, C] and its modulation [B, 1, 1, C] -> keys and values [B, G, H, T, 64]."""
        b, g, t, width = x.shape
        bias = F.pad(self.v_bias_target, (width, 0))
        kv = project(self.mat_qkv_target, x, self.kv_rows, bias, modulate, (scale, shift))
        k, v = kv.view(b, g, t, 2, self.heads, HEAD_DIM).permute(3, 0, 1, 4, 2, 5)
        return (unit(k) if self.l2_norm else k), v

    def forward(self, q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, spans: Sequence[Span]) -> Tensor:
        """Attend with both streams in one call, blend, then project once (`proj` is linear, so the order does not matter).

        Args:
            q: [B, H, 2T, 64], shared by the G trajectories.
            k, v: [B, G, H, K, 64].
            alpha: [T, 1], weight of the style stream.
            spans: which queries attend to which keys; together they cover all T tokens, in order.
        Returns:
            [B, G, T, C].
        """
        b, g = k.shape[:2]
        k, v = k.flatten(0, 1), v.flatten(0, 1)
        parts = []
        for span, some in zip(spans, q.split([2 * sum(span.tokens) for span in spans], dim=2), strict=True):
            some = some.unsqueeze(1).expand(b, g, -1, -1, -1).flatten(0, 1)
            keys, values = k[..., : span.keys, :], v[..., : span.keys, :]
            bias = None if span.bias is None else span.bias.to(some.dtype)
            mixed = attend(some, keys, values, bias)
            for scale in mixed.split([2 * t for t in span.tokens], dim=2):
                parts.append(scale.view(b, g, self.heads, 2, -1, HEAD_DIM))
        style, content = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=4)).unbind(3)
        blended = torch.lerp(content, style, alpha.expand(-1, HEAD_DIM).to(content.dtype))
        return project(self.proj, blended.transpose(2, 3).flatten(3))
