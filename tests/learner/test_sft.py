"""The SFT step against its definition."""

from __future__ import annotations

import math

import pytest
import small_model
import tiny
import torch
import torch.nn.functional as F
from torch import nn

from learner.sft import SftLearner, SftStepConfig, TokenCache, cosine_lr, decay_groups, tokenize
from stylevar.errors import UserError
from stylevar.images import u8_to_pm1


def reference_loss(model, batch, **options) -> torch.Tensor:
    target = model.vae.img_to_idxBl(u8_to_pm1(batch.target))
    logits = model.teacher_forced_logits(target, u8_to_pm1(batch.style), u8_to_pm1(batch.content))
    return F.cross_entropy(logits.flatten(0, 1), torch.cat(target, dim=1).flatten(), **options)


@pytest.mark.parametrize("cached", [True, False])
def test_loss_is_the_cross_entropy_of_the_teacher_forced_logits(cached):
    model = tiny.build()
    batch = small_model.batch(model, 4)
    learner = SftLearner(model, SftStepConfig(), TokenCache(model.vae) if cached else None)
    with torch.no_grad():
        expected = reference_loss(model.eval(), batch).item()
    assert learner.validate(batch).loss == pytest.approx(expected, abs=1e-6)
    # One block has a drop path rate of 0 and BatchNorm is frozen, so that the training forward is the same.
    assert learner.step(batch, lr=1e-9).loss == pytest.approx(expected, abs=1e-6)


def test_label_smoothing_is_for_training_only():
    model = tiny.build()
    batch = small_model.batch(model, 4)
    learner = SftLearner(model, SftStepConfig(label_smoothing=0.2))
    with torch.no_grad():
        plain, smooth = reference_loss(model, batch).item(), reference_loss(model, batch, label_smoothing=0.2).item()
    assert learner.validate(batch).loss == pytest.approx(plain, abs=1e-6)
    assert learner.step(batch, lr=1e-9).loss == pytest.approx(smooth, abs=1e-6)


def test_accuracy_counts_best_guesses_per_scale():
    model = tiny.build()
    batch = small_model.batch(model, 4)
    target = torch.cat(tokenize(model.vae, batch.target), dim=1)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(F.one_hot(target[0, -1], 32))
    result = SftLearner(model, SftStepConfig()).validate(batch)
    right = (target == target[0, -1]).float()
    assert result.accuracy == pytest.approx(right.mean().item())
    assert result.accuracy_per_scale == pytest.approx([right[:, at].mean().item() for at in model.arch.scale_slices()])
    assert result.accuracy_per_scale[-1] > 0


@pytest.mark.parametrize("train_bn", [False, True])
def test_batchnorm_statistics(train_bn):
    model = tiny.build()
    batch = small_model.batch(model, 4)
    before = {name: b.clone() for name, b in model.named_buffers() if "running" in name}
    SftLearner(model, SftStepConfig(train_bn=train_bn)).step(batch, lr=1e-3)
    moved = [name for name, b in model.named_buffers() if "running" in name and not torch.equal(b, before[name])]
    assert len(moved) == (len(before) if train_bn else 0)


def test_the_tokenizer_is_left_alone():
    model = tiny.build()
    batch = small_model.batch(model, 4)
    before = {name: value.clone() for name, value in model.vae.state_dict().items()}
    SftLearner(model, SftStepConfig(train_bn=True)).step(batch, lr=1e-2)
    assert not model.vae.training
    assert all(torch.equal(value, before[name]) for name, value in model.vae.state_dict().items())


def test_only_matrices_decay():
    model = tiny.build()
    decayed, others = decay_groups(model, 0.05)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    ids = [{id(p) for p in group["params"]} for group in (decayed, others)]
    assert ids[0] | ids[1] == set(names)
    assert not ids[0] & ids[1]
    without = {names[i] for i in ids[1]}
    assert {"pos_start", "pos_1LC", "lvl_embed.weight", "blocks.0.attn.scale_mul_1H11", "head.bias"} <= without
    assert {"style_encoder.1.weight", "blocks.0.attn.q_bias_guide", "blocks.0.ada_lin.1.bias"} <= without
    with_decay = {names[i] for i in ids[0]}
    assert {"word_embed.weight", "head.weight", "style_encoder.0.weight", "blocks.0.attn.mat_qkv_guide.weight"} <= with_decay
    assert all(dict(model.named_parameters())[name].ndim > 1 for name in with_decay)


def test_jitter_shifts_all_alphas_alike_within_bounds(monkeypatch):
    model = tiny.build()
    batch = small_model.batch(model, 4)
    seen: list[tuple[float, ...]] = []
    alphas = model.alphas
    monkeypatch.setattr(model, "alphas", lambda strength=0.0, values=None: seen.append(values) or alphas(strength, values))
    learner = SftLearner(model, SftStepConfig(alpha_jitter=0.4))
    torch.manual_seed(0)
    for _ in range(20):
        learner.step(batch, lr=1e-9)
    assert all(0.01 <= a <= 0.99 for values in seen for a in values)
    shifts = [values[1] - model.arch.alphas[1] for values in seen]
    assert max(shifts) > 0.2
    assert min(shifts) < -0.2
    assert len(set(shifts)) == 20
    inside = [v for v in seen if min(v) > 0.01 and max(v) < 0.99]
    assert inside
    assert all(v[2] - v[0] == pytest.approx(model.arch.alphas[2] - model.arch.alphas[0]) for v in inside)
    learner.validate(batch)
    assert seen[-1] is None


def test_overfits_a_batch():
    model = tiny.build()
    batch = small_model.batch(model, 2)
    learner = SftLearner(model, SftStepConfig(train_bn=True, weight_decay=0.0), TokenCache(model.vae))
    first = learner.step(batch, lr=3e-3)
    for _ in range(80):
        last = learner.step(batch, lr=3e-3)
    assert first.loss > 2.5
    assert last.loss < 0.5 * first.loss
    assert last.accuracy > first.accuracy


def test_average_starts_short_and_follows():
    model = tiny.build()
    batch = small_model.batch(model, 4)
    learner = SftLearner(model, SftStepConfig(ema=0.9, train_bn=True))
    average = learner.best_model
    assert average is not model
    assert average.vae is model.vae
    before = model.head.weight.detach().clone()
    learner.step(batch, lr=1e-3)
    keep = 1 / 11
    torch.testing.assert_close(average.head.weight, keep * before + (1 - keep) * model.head.weight.detach())
    norm, own = average.style_encoder[1], model.style_encoder[1]
    assert isinstance(norm, nn.BatchNorm2d)
    torch.testing.assert_close(norm.running_mean, (1 - keep) * own.running_mean)
    assert torch.equal(average.attn_bias_for_masking, model.attn_bias_for_masking)


def test_a_gradient_that_is_not_finite_changes_nothing():
    model = tiny.build()
    batch = small_model.batch(model, 4)
    learner = SftLearner(model, SftStepConfig(ema=0.9))
    with torch.no_grad():
        model.head.bias[0] = math.nan
    before = model.word_embed.weight.detach().clone()
    assert not math.isfinite(learner.step(batch, lr=1e-3).grad_norm)
    assert learner.updates == 0
    assert torch.equal(model.word_embed.weight, before)


def test_cached_tokens_are_the_tokenizers():
    model = tiny.build()
    batch = small_model.batch(model, 5)
    cache = TokenCache(model.vae)
    for _ in range(2):
        for cached, fresh in zip(cache(batch.target), tokenize(model.vae, batch.target), strict=True):
            assert torch.equal(cached, fresh)
    assert len(cache) == 5
    twice = torch.cat([batch.target, batch.target.flip(-1)])
    cache.add(twice)
    assert len(cache) == 10


def test_learning_rate_schedule():
    rates = [cosine_lr(step, 100, 10, 1.0, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert cosine_lr(0, 1, 0, 2.0) == 2.0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"lr": 0.0}, "--lr 0.0"),
        ({"ema": 1.0}, "--ema 1.0"),
        ({"alpha_jitter": 0.7}, "--alpha-jitter 0.7"),
        ({"betas": (0.9, 1.0)}, "--betas 0.9 1.0"),
    ],
)
def test_bad_settings(setting, message):
    with pytest.raises(UserError, match=message):
        SftStepConfig(**setting)
