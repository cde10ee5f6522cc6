"""Multi-scale residual vector quantisation: an image as token maps of increasing resolution (VAR, Tian et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Phi(nn.Conv2d):
    """Half identity, half 3x3 convolution: corrects the blur of upsampling a coarse token map."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return 0.5 * h + 0.5 * super().forward(h)


class PhiShared(nn.Module):
    """K convolutions shared by S scales; scale s uses the one whose tick is nearest to s / (S - 1)."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(Phi(channels) for _ in range(count))

    def index(self, at: float) -> int:
        # Must be float64: at ten scales rounding breaks two ties, and the released weights depend on the result.
        count = len(self.qresi_ls)
        inset = 1 / 3 / count if count == 4 else 1 / 2 / count
        return int(np.argmin(np.abs(np.linspace(inset, 1 - inset, count) - at)))

    def at(self, at: float) -> nn.Module:
        return self.qresi_ls[self.index(at)]


class PhiSingle(nn.Module):
    """One convolution for every scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qresi = Phi(channels)

    def at(self, at: float) -> nn.Module:
        return self.qresi


class PhiPerScale(nn.ModuleList):
    """One convolution per scale."""

    def __init__(self, channels: int, scales: int) -> None:
        super().__init__(Phi(channels) for _ in range(scales))

    def at(self, at: float) -> nn.Module:
        return self[round(at * (len(self) - 1))]


def _resize(x: Tensor, side: int, mode: str) -> Tensor:
    return x if x.shape[-1] == side else F.interpolate(x, size=(side, side), mode=mode)


class MultiScaleQuantizer(nn.Module):
    """Codebook [V, D] and the residual recursion over the scales `patch_nums`.

    A latent f [B, D, h, h] (h = the last scale's side) is approximated by f_hat = sum over scales of
    phi_s(bicubic(codebook[idx_s])). Each idx_s quantises the residual of the scales before it, area-resized.
    """

    def __init__(self, vocab: int, channels: int, patch_nums: Sequence[int], share_quant_resi: int) -> None:
        super().__init__()
        self.patch_nums = tuple(patch_nums)
        scales = len(self.patch_nums)
        self.quant_resi: PhiShared | PhiSingle | PhiPerScale
        if share_quant_resi == 0:
            self.quant_resi = PhiPerScale(channels, scales)
        elif share_quant_resi == 1:
            self.quant_resi = PhiSingle(channels)
        else:
            self.quant_resi = PhiShared(channels, share_quant_resi)
        self.embedding = nn.Embedding(vocab, channels)
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(scales, vocab))

    def phi(self, s: int) -> nn.Module:
        """The residual convolution of scale s."""
        last = len(self.patch_nums) - 1
        return self.quant_resi.at(s / last if last else 0.0)

    def nearest(self, z: Tensor) -> Tensor:
        """Rows [N, D] -> indices [N] of the nearest codebook rows by squared Euclidean distance."""
        codebook = self.embedding.weight
        distance = torch.addmm(z.square().sum(1, keepdim=True) + codebook.square().sum(1), z, codebook.t(), alpha=-2)
        return distance.argmin(dim=1)

    def tokenize_scale(self, rest: Tensor, s: int) -> Tensor:
        """Residual [B, D, h, h] -> int64 [B, p*p], the token map of scale s."""
        z = _resize(rest, self.patch_nums[s], "area")
        return self.nearest(z.permute(0, 2, 3, 1).flatten(0, 2)).view(rest.shape[0], -1)

    def embed(self, idx: Tensor, s: int) -> Tensor:
        """Tokens [B, p*p] of scale s -> their contribution to f_hat, [B, D, h, h]."""
        return self.embed_vectors(self.embedding(idx), s)

    def embed_vectors(self, vectors: Tensor, s: int) -> Tensor:
        """`embed` for arbitrary vectors [B, p*p, D] instead of codebook rows."""
        p = self.patch_nums[s]
        h = vectors.transpose(1, 2).reshape(vectors.shape[0], -1, p, p)
        return self.phi(s)(_resize(h, self.patch_nums[-1], "bicubic"))

    def vectors_to_fhat(self, vectors: Tensor) -> Tensor:
        """One vector per token of all scales, [B, L, D] -> f_hat [B, D, h, h], differentiable."""
        f_hat = self.empty(vectors.shape[0])
        for s, some in enumerate(vectors.split([p * p for p in self.patch_nums], dim=1)):
            f_hat = f_hat + self.embed_vectors(some, s)
        return f_hat

    def at_scale(self, f_hat: Tensor, s: int) -> Tensor:
        """f_hat [B, D, h, h], area-resized to scale s, as tokens [B, p*p, D]."""
        return _resize(f_hat, self.patch_nums[s], "area").flatten(2).transpose(1, 2)

    def empty(self, batch: int) -> Tensor:
        """f_hat before the first scale: zeros [batch, D, h, h]."""
        side, weight = self.patch_nums[-1], self.embedding.weight
        return weight.new_zeros(batch, weight.shape[1], side, side)

    def f_to_idxBl(self, f: Tensor) -> list[Tensor]:
        """Latent [B, D, h, h] -> one int64 [B, p*p] per scale."""
        rest, idx_Bl = f, []
        for s in range(len(self.patch_nums)):
            idx_Bl.append(self.tokenize_scale(rest, s))
            rest = rest - self.embed(idx_Bl[-1], s)
        return idx_Bl

    def straight_through(self, f: Tensor, commitment: float = 0.25) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Quantise for training: the gradient of f_hat passes to f unchanged (van den Oord et al. 2017).

        Returns:
            f_hat [B, D, h, h]; the sum of codebook and commitment loss, averaged over the scales; the token maps.
        """
        with torch.no_grad():
            idx_Bl = self.f_to_idxBl(f)
        loss = f.new_zeros(())
        for f_hat in self.cumulative(idx_Bl):
            loss = loss + F.mse_loss(f_hat, f.detach()) + commitment * F.mse_loss(f, f_hat.detach())
        return f + (f_hat - f).detach(), loss / len(idx_Bl), idx_Bl

    def cumulative(self, idx_Bl: Sequence[Tensor]) -> list[Tensor]:
        """Token maps -> f_hat [B, D, h, h] after each scale."""
        f_hats, f_hat = [], self.empty(idx_Bl[0].shape[0])
        for s, idx in enumerate(idx_Bl):
            f_hat = f_hat + self.embed(idx, s)
            f_hats.append(f_hat)
        return f_hats

    def idxBl_to_fhat(self, idx_Bl: Sequence[Tensor]) -> Tensor:
        """Token maps of all scales -> f_hat [B, D, h, h]."""
        return self.cumulative(idx_Bl)[-1]

    def guide_features(self, idx_Bl: Sequence[Tensor]) -> Tensor:
        """f_hat after each scale, area-resized to that scale: [B, L, D]."""
        return torch.cat([self.at_scale(f_hat, s) for s, f_hat in enumerate(self.cumulative(idx_Bl))], dim=1)

    def teacher_input(self, idx_Bl: Sequence[Tensor]) -> Tensor:
        """The input that predicts scales 1..S-1: f_hat after scale s, area-resized to scale s + 1, [B, L - 1, D]."""
        steps = [self.at_scale(f_hat, s + 1) for s, f_hat in enumerate(self.cumulative(idx_Bl)[:-1])]
        return torch.cat(steps, dim=1) if steps else self.empty(idx_Bl[0].shape[0]).flatten(2).transpose(1, 2)[:, :0]
