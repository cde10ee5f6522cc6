"""Prefixes with guesses, and the targets that correct them."""

from __future__ import annotations

import small_model
import torch

from data.shards import TripletShards
from launch.common.defaults import DEMO_DATA, DEMO_MODEL, DEMO_VAE
from learner.supervised.config import SftStepConfig
from learner.supervised.self_forcing import guess, self_forced
from learner.supervised.step import SftLearner
from stylevar.checkpoint import load_pair
from stylevar.images import u8_to_pm1


def tokens_of(model, count: int = 6) -> torch.Tensor:
    batch = small_model.batch(model, count)
    return torch.cat(model.vae.img_to_idxBl(batch.target.float() / 127.5 - 1), dim=1)


def test_without_guesses_nothing_changes():
    model = small_model.build()
    true = tokens_of(model)
    guesses = (true + 1) % model.arch.V
    prefix, target = self_forced(model.vae.quantize, true, guesses, torch.zeros_like(true, dtype=torch.bool))
    assert torch.equal(prefix, true)
    assert torch.equal(target, true)


def test_targets_are_the_tokens_of_what_the_prefix_leaves():
    model = small_model.build()
    quantizer, true = model.vae.quantize, tokens_of(model)
    guesses = (true + 7) % model.arch.V
    replaced = torch.zeros_like(true, dtype=torch.bool)
    replaced[:3, 0] = True  # the single token of the first scale, in half of the sequences
    prefix, target = self_forced(quantizer, true, guesses, replaced)
    slices = model.arch.scale_slices()
    assert torch.equal(prefix[3:], true[3:])
    assert torch.equal(target[3:], true[3:])
    assert torch.equal(prefix[:3, 0], guesses[:3, 0])
    assert torch.equal(target[:, 0], true[:, 0])  # the mistake itself is not what is to be learned
    wanted = quantizer.idxBl_to_fhat([true[:, s] for s in slices])[:3]
    rest = wanted - quantizer.embed(prefix[:3, slices[0]], 0)
    for s in (1, 2):
        assert torch.equal(target[:3, slices[s]], quantizer.tokenize_scale(rest, s))
        rest = rest - quantizer.embed(prefix[:3, slices[s]], s)
    assert not torch.equal(target[:3], true[:3])


def test_a_trained_tokenizer_comes_nearer_to_the_image_with_corrected_targets():
    vae, model = load_pair(str(DEMO_MODEL), str(DEMO_VAE))
    rows = TripletShards([DEMO_DATA / "novel-00000.tar"])
    images = torch.stack([rows[i].target for i in range(4)])
    slices = model.arch.scale_slices()
    true = torch.cat(vae.img_to_idxBl(u8_to_pm1(images)), dim=1)
    replaced = torch.zeros_like(true, dtype=torch.bool)
    replaced[:, slices[1]] = True
    prefix, _ = self_forced(vae.quantize, true, (true + 7) % model.arch.V, replaced)
    f_hats = [
        vae.quantize.idxBl_to_fhat([some[:, s] for s in slices])
        for some in (true, prefix, torch.where(replaced, prefix, true))
    ]
    corrected, uncorrected = ((f_hat - f_hats[0]).square().sum().item() for f_hat in f_hats[1:])
    assert corrected < 0.5 * uncorrected


def test_guesses_follow_the_distribution():
    logits = torch.tensor([0.2, 0.5, 0.3]).log().expand(1, 20000, 3)
    drawn = guess(logits, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn.flatten(), minlength=3) / drawn.numel()
    torch.testing.assert_close(shares, torch.tensor([0.2, 0.5, 0.3]), atol=0.02, rtol=0)


def test_a_step_is_the_same_for_the_same_seed_and_differs_from_teacher_forcing():
    losses = []
    for share, temperature, seed in ((1.0, 1.0, 0), (1.0, 1.0, 0), (1.0, 1.0, 1), (1.0, 1e-3, 0), (0.0, 1.0, 0)):
        model = small_model.build()
        learner = SftLearner(
            model, SftStepConfig(self_forced=share, self_forced_rate=1.0, self_forced_temperature=temperature)
        )
        losses.append(learner.step([small_model.batch(model, 4)], lr=1e-3, seed=seed).loss)
    assert losses[0] == losses[1]
    assert len(set(losses[1:])) == 4
