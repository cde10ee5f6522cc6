"""The image tokenizer: a VQGAN-style convolutional encoder and decoder around the multi-scale quantizer."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylevar.config import ModelConfig
from stylevar.fusing import Fusible, fusing
from stylevar.quantizer import MultiScaleQuantizer


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.bfloat16 else x


class GroupNorm(nn.GroupNorm):
    """GroupNorm that computes in fp32 when autocast gives it bfloat16, on CPU and GPU.

    The CPU's bfloat16 kernel takes four to five times as long in the backward pass.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_at_least_fp32(x))

    def then_silu(self, x: Tensor) -> Tensor:
        """SiLU of the norm of x [N, C, H, W], in the dtype of x."""
        return _norm_silu(x, self.weight, self.bias, self.num_groups, self.eps)


def _norm_silu_plain(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    return F.silu(F.group_norm(_at_least_fp32(x), groups, weight, bias, eps)).to(x.dtype)


def _norm_silu_by_channel(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """The same from the moments of each channel: if the channels are last, x is then read in the order of its memory."""
    n, c = x.shape[:2]
    wide = _at_least_fp32(x)
    var, mean = (part.view(n, groups, -1) for part in torch.var_mean(wide, dim=(2, 3), correction=0))
    center = mean.mean(2, keepdim=True)
    spread = (var + (mean - center).square()).mean(2, keepdim=True)
    scale = weight.view(1, groups, -1) * (spread + eps).rsqrt()
    shift = bias.view(1, groups, -1) - center * scale
    return F.silu(wide * scale.view(n, c, 1, 1) + shift.view(n, c, 1, 1)).to(x.dtype)


_norm_silu = Fusible(_norm_silu_plain, fused=_norm_silu_by_channel)


def _norm(channels: int) -> GroupNorm:
    return GroupNorm(32, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Twice norm, SiLU, conv, with a 1x1 shortcut if the number of channels changes."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = _norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1.then_silu(x))
        h = self.conv2(self.norm2.then_silu(h))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class SpatialAttention(nn.Module):
    """Single-head self-attention over the positions of a feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).split(c, dim=2)
        mixed = F.scaled_dot_product_attention(q, k, v)  # default scale is C^-1/2
        return x + self.proj_out(mixed.transpose(1, 2).reshape(b, c, h, w))


class Downsample(nn.Module):
    """Halve the resolution, with padding only on the right and at the bottom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution, then the resampling. Only the lowest resolution has attention, after every block."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        blocks: int,
        attention: bool,
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        widths = [channels_in] + [channels_out] * (blocks - 1)
        self.block = nn.ModuleList(ResidualBlock(width, channels_out) for width in widths)
        self.attn = nn.ModuleList(SpatialAttention(channels_out) for _ in widths if attention)
        if downsample:
            self.downsample = Downsample(channels_out)
        if upsample:
            self.upsample = Upsample(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        if hasattr(self, "upsample"):
            x = self.upsample(x)
        return x


class Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = SpatialAttention(channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """[B, 3, H, W] in [-1, 1] -> [B, D, h, w], h = H / 2^(levels - 1)."""

    def __init__(self, ch: int, ch_mult: tuple[int, ...], z_channels: int, blocks: int = 2) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        widths = [ch, *(ch * m for m in ch_mult)]
        last = len(ch_mult) - 1
        self.down = nn.ModuleList(
            Level(widths[i], widths[i + 1], blocks, attention=i == last, downsample=i != last) for i in range(len(ch_mult))
        )
        self.mid = Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(self.norm_out.then_silu(self.mid(h)))


class Decoder(nn.Module):
    """[B, D, h, w] -> [B, 3, H, W]; the mirror of the encoder with one more block per level."""

    def __init__(self, ch: int, ch_mult: tuple[int, ...], z_channels: int, blocks: int = 3) -> None:
        super().__init__()
        widths = [ch * m for m in ch_mult]
        last = len(ch_mult) - 1
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Level(widths[min(i + 1, last)], widths[i], blocks, attention=i == last, upsample=i > 0)
            for i in range(len(ch_mult))
        )
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(self.norm_out.then_silu(h))


class VQVAE(nn.Module):
    """Images in [-1, 1] to multi-scale token maps and back."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self._decode_dtype = torch.float32
        self.encoder = Encoder(config.ch, config.ch_mult, config.Cvae)
        self.decoder = Decoder(config.ch, config.ch_mult, config.Cvae)
        self.quantize = MultiScaleQuantizer(config.V, config.Cvae, config.patch_nums, config.share_quant_resi)
        self.quant_conv = nn.Conv2d(config.Cvae, config.Cvae, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(config.Cvae, config.Cvae, 3, padding=1)
        self.to(memory_format=torch.channels_last)

    def to(self, *args: Any, **kwargs: Any) -> VQVAE:
        """`nn.Module.to`, with the memory layout that is faster on the new device; shapes and names do not change.

        Channels last on a CPU, and on a GPU if GroupNorm is fused. On a GPU, torch's own GroupNorm permutes each feature map
        back and forth: decoding took 1.1 (fp32) to 1.4 (bf16) times as long on an H200.
        """
        super().to(*args, **kwargs)
        permutes = next(self.parameters()).is_cuda and not fusing()
        return super().to(memory_format=torch.contiguous_format if permutes else torch.channels_last)

    def decode_in(self, dtype: torch.dtype) -> None:
        """Make a GPU decode images in `dtype`. A CPU always decodes in fp32, which is faster without bf16 units."""
        self._decode_dtype = dtype

    def fingerprint(self) -> str:
        """A bit-exact hash of the weights and scales: equal fingerprints give equal tokens."""
        digest = hashlib.sha256(repr(self.config.patch_nums).encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().numpy().data)
        return digest.hexdigest()[:16]

    def encode(self, img_pm1: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> continuous latent [B, D, h, w]."""
        return self.quant_conv(self.encoder(img_pm1))

    @torch.no_grad()
    def img_to_idxBl(self, img_pm1: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] in [-1, 1] -> one int64 [B, p*p] per scale, row-major."""
        return self.quantize.f_to_idxBl(self.encode(img_pm1))

    def fhat_to_img(self, f_hat: Tensor) -> Tensor:
        """Quantised latent [B, D, h, w] -> images [B, 3, H, W], clamped to [-1, 1]."""
        if self._decode_dtype == torch.float32 or not f_hat.is_cuda:
            return self.decode(f_hat).clamp(-1, 1)
        with torch.autocast(f_hat.device.type, self._decode_dtype):
            return self.decode(f_hat).float().clamp(-1, 1)

    def decode(self, f_hat: Tensor) -> Tensor:
        """`fhat_to_img` without the clamp, for training."""
        return self.decoder(self.post_quant_conv(f_hat))

    def idxBl_to_img(self, idx_Bl: list[Tensor]) -> Tensor:
        """Token maps of all scales -> images [B, 3, H, W] in [-1, 1]."""
        return self.fhat_to_img(self.quantize.idxBl_to_fhat(idx_Bl))
