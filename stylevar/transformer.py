"""The StyleVAR transformer: next-scale prediction with blended style and content cross-attention.

Shapes: B conditions, G trajectories of each, T tokens (of one scale, or all L), C width, H heads of 64, D latent channels.
Everything that depends only on the condition (encoders, guides, adaLN vectors, guide queries) is computed once per
condition in `conditions.py`; the blocks here process the target tokens of B x G trajectories.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from stylevar.attention import Span
from stylevar.block import Block, Blocks
from stylevar.config import ModelConfig
from stylevar.lowrank import compute_dtype, compute_in
from stylevar.norm import modulate
from stylevar.products import linear

if TYPE_CHECKING:
    from stylevar.vqvae import VQVAE

MIN_SPAN = 64
"""Small scales share a call until it has this many tokens: below, another call costs more than the masked scores."""


def without_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Inside the context, operations on the device of `x` keep their inputs' dtypes (on meta they always do)."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def encoder_trunk(features: int) -> nn.Sequential:
    """ResNet-18 without its classifier: [B, 3, H, W] -> [B, f, 1, 1], f = `features` (512 is the standard net)."""
    widths = [features // 8, features // 4, features // 2, features]
    stages, inputs = [], widths[0]
    for i, width in enumerate(widths):
        stride = 1 if i == 0 else 2
        shortcut = None
        if stride != 1:
            shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        stages.append(nn.Sequential(BasicBlock(inputs, width, stride, shortcut), BasicBlock(width, width)))
        inputs = width
    stem = nn.Conv2d(3, widths[0], 7, stride=2, padding=3, bias=False)
    trunk = nn.Sequential(
        stem, nn.BatchNorm2d(widths[0]), nn.ReLU(), nn.MaxPool2d(3, 2, 1), *stages, nn.AdaptiveAvgPool2d(1)
    )
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return trunk


class AdaLNBeforeHead(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))


class StyleVAR(nn.Module):
    """p(tokens | style, content), scale by scale. Parameter names are those of the released checkpoints."""

    lvl_1L: Tensor
    level: Tensor
    """[L], the scale of each token."""
    causal_bias: Tensor
    """[L, L], 0 where a token may attend to another (of its own or an earlier scale), -inf elsewhere."""

    def __init__(self, vae: VQVAE, config: ModelConfig) -> None:
        super().__init__()
        width, length = config.width, config.tokens
        self.arch = config
        # In a tuple, so that the frozen tokenizer is not part of this module's parameters and state.
        self._vae = (vae,)
        self.pos_start = nn.Parameter(torch.empty(1, 1, width))
        self.pos_1LC = nn.Parameter(torch.empty(1, length, width))
        # The first two buffers exist for the checkpoints; the computation uses only the config.
        level, causal = self._level_and_causal()
        self.register_buffer("lvl_1L", level.clone().view(1, length))
        self.register_buffer("attn_bias_for_masking", causal.clone().view(1, 1, length, length))
        self.register_buffer("level", level, persistent=False)
        self.register_buffer("causal_bias", causal, persistent=False)
        self.style_encoder = encoder_trunk(config.style_enc_dim)
        self.content_encoder = encoder_trunk(config.style_enc_dim)
        self.feat_emb = nn.Linear(config.style_enc_dim, width)
        self.word_embed = nn.Linear(config.Cvae, width)
        self.lvl_embed = nn.Embedding(config.scales, width)
        if config.shared_aln:
            self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        rates = torch.linspace(0, 0.1 * config.depth / 24, config.depth, device="cpu").tolist()
        self.blocks = Blocks(Block(config, rate) for rate in rates)
        self.head_nm = AdaLNBeforeHead(width)
        self.head = nn.Linear(width, config.V)

    def _level_and_causal(self) -> tuple[Tensor, Tensor]:
        """The values of `level` and `causal_bias`."""
        level = torch.cat([torch.full((p * p,), s) for s, p in enumerate(self.arch.patch_nums)])
        return level, torch.where(level.view(-1, 1) >= level.view(1, -1), 0.0, -torch.inf)

    def fill_buffers(self) -> None:
        """Compute the buffers that are not part of a checkpoint, after `to_empty`."""
        for buffer, values in zip((self.level, self.causal_bias), self._level_and_causal(), strict=True):
            buffer.copy_(values)

    @property
    def vae(self) -> VQVAE:
        return self._vae[0]

    @property
    def device(self) -> torch.device:
        return self.pos_start.device

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype that the blocks multiply and attend in. Residual stream, norms and logits are always fp32."""
        return compute_dtype(next(iter(self.blocks)).ffn.fc1)

    def compute_in(self, dtype: torch.dtype) -> None:
        """Make all blocks multiply and attend in `dtype`, and a GPU decode images in it."""
        for layer in self._products():
            compute_in(layer, dtype)
        self.vae.decode_in(dtype)

    def hold_in(self, dtype: torch.dtype) -> None:
        """Like `compute_in`, but also convert the blocks' weights, for inference."""
        for layer in self._products():
            layer.to(dtype)
        self.vae.decode_in(dtype)

    def compile_blocks(self) -> None:
        """Compile the blocks on first use, once per scale and batch shape. This takes minutes; later calls are faster."""
        # All blocks share the compiled code; by default dynamo gives up after eight shapes.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * self.arch.scales)
        for block in self.blocks:
            block.compile(dynamic=False)

    def _products(self) -> Iterator[nn.Module]:
        for block in self.blocks:
            attn, ffn = block.attn, block.ffn
            yield from (attn.mat_qkv_guide, attn.mat_qkv_target, attn.proj, ffn.fc1, ffn.fc2)

    def level_positions(self) -> Tensor:
        """The sum of level and position embedding of every token, [1, L, C]."""
        return self.lvl_embed(self.level) + self.pos_1LC

    def alphas(self, style_strength: float = 0.0, values: Sequence[float] | None = None) -> Tensor:
        """Weight of the style stream per token, [L, 1].

        Args:
            style_strength: in [-1, 1]; adds half of it to every alpha, clamped to [0.01, 0.99]. 0 changes nothing.
            values: one alpha per scale, instead of the model's own.
        """
        per_scale = torch.tensor(self.arch.alphas if values is None else values, device=self.device)
        if style_strength:
            per_scale = (per_scale + 0.5 * style_strength).clamp(0.01, 0.99)
        return per_scale[self.level].unsqueeze(1)

    def causal_spans(self) -> list[Span]:
        """The spans in which every token attends to its own and earlier scales, with few masked scores.

        A scale on its own needs no mask. The first few scales are tiny and share one masked call.
        """
        slices = self.arch.scale_slices()
        together = next((s for s, at in enumerate(slices) if at.stop >= MIN_SPAN), len(slices) - 1) + 1
        first = slices[together - 1].stop
        bias = torch.cat([self.causal_bias[at, :first].repeat(2, 1) for at in slices[:together]])
        spans = [Span(tuple(at.stop - at.start for at in slices[:together]), first, bias)]
        spans += [Span((at.stop - at.start,), at.stop) for at in slices[together:]]
        return spans

    def head_input(self, x: Tensor, head_adaln: Tensor) -> Tensor:
        """x [B, G, T, C], head_adaln [2, B, 1, 1, C] -> the input of `head`, fp32 [B, G, T, C]."""
        # In fp32: logits differ by less than bfloat16 can resolve.
        with without_autocast(x):
            return modulate(x.float(), head_adaln[0].float(), head_adaln[1].float())

    def head_logits(self, x: Tensor, head_adaln: Tensor) -> Tensor:
        """x [B, G, T, C], head_adaln [2, B, 1, 1, C] -> fp32 logits [B, G, T, V]."""
        with without_autocast(x):
            return linear(self.head_input(x, head_adaln), self.head.weight, self.head.bias).float()
