"""Residual quantisation against its definition, written out scale by scale."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stylevar.quantizer import MultiScaleQuantizer, PhiPerScale, PhiShared, PhiSingle

SCALES = (1, 2, 4)


@pytest.fixture
def quantizer() -> MultiScaleQuantizer:
    torch.manual_seed(0)
    return MultiScaleQuantizer(vocab=16, channels=4, patch_nums=SCALES, share_quant_resi=4)


@pytest.fixture
def latent() -> torch.Tensor:
    return torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def by_hand(quantizer, latent):
    """Tokens, and f_hat after each scale."""
    rest, f_hat, tokens, f_hats = latent, torch.zeros_like(latent), [], []
    for s, p in enumerate(SCALES):
        z = F.interpolate(rest, size=(p, p), mode="area") if p < 4 else rest
        rows = z.permute(0, 2, 3, 1).reshape(-1, 4)
        idx = torch.cdist(rows, quantizer.embedding.weight).argmin(1).view(3, p * p)
        h = quantizer.embedding(idx).transpose(1, 2).reshape(3, 4, p, p)
        h = F.interpolate(h, size=(4, 4), mode="bicubic") if p < 4 else h
        ticks = torch.linspace(1 / 12, 11 / 12, 4, dtype=torch.float64)
        conv = quantizer.quant_resi.qresi_ls[int((ticks - s / 2).abs().argmin())]
        h = 0.5 * h + 0.5 * F.conv2d(h, conv.weight, conv.bias, padding=1)
        rest, f_hat = rest - h, f_hat + h
        tokens.append(idx)
        f_hats.append(f_hat)
    return tokens, f_hats


@torch.no_grad()
def test_tokens_and_sums_follow_the_definition(quantizer, latent):
    tokens, f_hats = by_hand(quantizer, latent)
    ours = quantizer.f_to_idxBl(latent)
    assert all(torch.equal(a, b) for a, b in zip(ours, tokens, strict=True))
    for a, b in zip(quantizer.cumulative(ours), f_hats, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    torch.testing.assert_close(quantizer.idxBl_to_fhat(ours), f_hats[-1], atol=1e-5, rtol=0)


@torch.no_grad()
def test_guides_see_their_own_scale_and_inputs_the_next(quantizer, latent):
    tokens, f_hats = by_hand(quantizer, latent)

    def at(f_hat, p):
        return F.interpolate(f_hat, size=(p, p), mode="area").flatten(2).transpose(1, 2)

    guides = torch.cat([at(f_hat, p) for f_hat, p in zip(f_hats, SCALES, strict=True)], dim=1)
    torch.testing.assert_close(quantizer.guide_features(tokens), guides, atol=1e-5, rtol=0)
    inputs = torch.cat([at(f_hat, p) for f_hat, p in zip(f_hats[:-1], SCALES[1:], strict=True)], dim=1)
    torch.testing.assert_close(quantizer.teacher_input(tokens), inputs, atol=1e-5, rtol=0)


def test_one_scale_has_no_later_input():
    quantizer = MultiScaleQuantizer(vocab=8, channels=4, patch_nums=(2,), share_quant_resi=4)
    assert quantizer.teacher_input([torch.zeros(3, 4, dtype=torch.long)]).shape == (3, 0, 4)


@pytest.mark.parametrize(("share", "kind"), [(0, PhiPerScale), (1, PhiSingle), (4, PhiShared), (2, PhiShared)])
def test_sharing_of_the_residual_convolutions(share, kind):
    quantizer = MultiScaleQuantizer(vocab=8, channels=4, patch_nums=SCALES, share_quant_resi=share)
    assert isinstance(quantizer.quant_resi, kind)
    used = [quantizer.phi(s) for s in range(len(SCALES))]
    assert len(set(used)) == {0: 3, 1: 1, 4: 3, 2: 2}[share]
    assert used[0] is not used[-1] or share == 1


def test_straight_through_passes_gradients_unchanged(quantizer, latent):
    latent = latent.requires_grad_()
    f_hat, loss, tokens = quantizer.straight_through(latent)
    torch.testing.assert_close(f_hat, quantizer.idxBl_to_fhat(tokens), atol=1e-6, rtol=0)
    weights = torch.randn(f_hat.shape, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((f_hat * weights).sum(), latent, retain_graph=True)
    torch.testing.assert_close(gradient, weights)

    f_hats = quantizer.cumulative(tokens)
    errors = [(f - latent).square().mean() for f in f_hats]
    torch.testing.assert_close(loss, 1.25 * torch.stack(errors).mean())
    # Commitment alone moves the encoder, by a quarter.
    (gradient,) = torch.autograd.grad(loss, latent)
    expected = sum(0.25 * 2 * (latent - f).detach() / latent.numel() for f in f_hats) / len(f_hats)
    torch.testing.assert_close(gradient, expected)
