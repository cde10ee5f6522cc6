"""The VQ-VAE's training loss and the revival of unused codes."""

from __future__ import annotations

import pytest
import small_model
import tiny
import torch

from learner.supervised.vqvae import CodeRevival, feature_distance, tokenizer_loss
from stylevar.images import u8_to_pm1


def features(images_01: torch.Tensor) -> list[torch.Tensor]:
    return [images_01, torch.nn.functional.avg_pool2d(images_01, 2)]


@pytest.fixture
def vae():
    return tiny.build().vae.requires_grad_(True)


@pytest.fixture
def images() -> torch.Tensor:
    return u8_to_pm1(small_model.batch(tiny.build(), 4).target)


def test_loss_is_the_sum_of_its_terms(vae, images):
    loss = tokenizer_loss(vae, images, features, perceptual_weight=0.3)
    rebuilt = vae.decode(vae.quantize.idxBl_to_fhat(loss.tokens))
    torch.testing.assert_close(loss.pixels, (rebuilt - images).abs().mean(), atol=1e-5, rtol=0)
    wanted = feature_distance(features(rebuilt * 0.5 + 0.5), features(images * 0.5 + 0.5))
    torch.testing.assert_close(loss.perceptual, wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(loss.total, loss.pixels + 0.3 * loss.perceptual + loss.codebook)


def test_every_part_of_the_vae_learns(vae, images):
    tokenizer_loss(vae, images, features, perceptual_weight=0.3).total.backward()
    without = {name for name, p in vae.named_parameters() if p.grad is None or not p.grad.abs().any()}
    # Of the four shared convolutions, three scales use three.
    used = {id(p) for s in range(3) for p in vae.quantize.phi(s).parameters()}
    assert without == {
        name for name, p in vae.quantize.named_parameters("quantize") if "quant_resi" in name and id(p) not in used
    }


def test_feature_distance_ignores_the_length_of_features():
    maps = [torch.rand(2, 5, 4, 4) + 0.1]
    assert feature_distance(maps, [3 * maps[0]]).item() == pytest.approx(0.0, abs=1e-6)
    opposite = feature_distance(maps, [-maps[0]])
    assert opposite.item() == pytest.approx(4.0, abs=1e-4)  # |2 u|^2 of unit vectors


def test_revival_moves_unused_codes_only_and_onto_what_it_met(vae, images):
    revival = CodeRevival(vae.quantize.embedding.num_embeddings)
    with torch.no_grad():
        tokens = vae.img_to_idxBl(images)
    revival.count(tokens)
    used = torch.cat([t.flatten() for t in tokens]).unique()
    before = vae.quantize.embedding.weight.detach().clone()
    assert revival.used_share == pytest.approx(len(used) / len(before))
    torch.manual_seed(0)
    assert revival.revive(vae, images) == len(before) - len(used)
    after = vae.quantize.embedding.weight.detach()
    assert torch.equal(after[used], before[used])
    dead = torch.ones(len(before), dtype=torch.bool)
    dead[used] = False
    assert not (after[dead] == before[dead]).all(dim=1).any()
    assert revival.used_share == 0.0
