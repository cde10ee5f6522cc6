"""The SFT step against its definition."""

from __future__ import annotations

import dataclasses
import math

import pytest
import small_model
import tiny
import torch
import torch.nn.functional as F
from torch import nn

from learner.supervised.config import SftStepConfig
from learner.supervised.step import SftLearner, decay_groups
from learner.supervised.token_cache import TokenCache, tokenize
from learner.supervised.validation import ValidationSums
from stylevar.contracts import ConditionBatch
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
    assert learner.validate(batch).loss == pytest.approx(expected, rel=1e-5)
    # One block has a drop path rate of 0 and BatchNorm is frozen, so that the training forward is the same.
    assert learner.step([batch], lr=1e-9, seed=0).loss == pytest.approx(expected, rel=1e-5)


def test_label_smoothing_is_for_training_only():
    model = tiny.build()
    batch = small_model.batch(model, 4)
    learner = SftLearner(model, SftStepConfig(label_smoothing=0.2))
    with torch.no_grad():
        plain, smooth = reference_loss(model, batch).item(), reference_loss(model, batch, label_smoothing=0.2).item()
    assert learner.validate(batch).loss == pytest.approx(plain, rel=1e-5)
    assert learner.step([batch], lr=1e-9, seed=0).loss == pytest.approx(smooth, rel=1e-5)


def test_accuracy_counts_best_guesses_per_scale():
    model = tiny.build()
    batch = small_model.batch(model, 4)
    target = torch.cat(tokenize(model.vae, batch.target), dim=1)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(F.one_hot(target[0, -1], 32))
    result = SftLearner(model, SftStepConfig()).validate(batch)
    right = (target == target[0, -1]).double()
    assert result.top1 == pytest.approx(right.mean().item())
    tags = result.scalars("val", 5)
    for number, at in enumerate(model.arch.scale_slices(), 1):
        assert tags[f"val_scales/top1/{number:02d}"] == pytest.approx(right[:, at].mean().item())
    assert tags["val/last_scale/top1"] == tags["val_scales/top1/03"] > 0


def test_sums_by_hand_add_up():
    logits = torch.tensor([[[0.0, 1.0, 2.0], [3.0, 1.0, 2.0]], [[0.0, 0.0, 9.0], [1.0, 5.0, 2.0]]])
    target = torch.tensor([[2, 1], [0, 2]])
    scales = [slice(0, 1), slice(1, 2)]
    whole = ValidationSums.of(logits, target, scales, 2)
    losses = -logits.log_softmax(-1).gather(-1, target.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(whole.sums[0], losses.sum(0).double())
    assert whole.sums[1:].tolist() == [[1, 0], [2, 1], [2, 2]]
    assert (whole.top1, whole.topk) == (0.25, 0.75)
    parts = [ValidationSums.of(logits[i : i + 1], target[i : i + 1], scales, 2) for i in range(2)]
    torch.testing.assert_close((parts[0] + parts[1]).sums, whole.sums)
    assert whole.scalars("v", 2)["v_scales/top2/02"] == 0.5


@pytest.mark.parametrize("train_bn", [False, True])
def test_batchnorm_statistics(train_bn):
    model = tiny.build()
    batch = small_model.batch(model, 4)
    before = {name: b.clone() for name, b in model.named_buffers() if "running" in name}
    SftLearner(model, SftStepConfig(train_bn=train_bn)).step([batch], lr=1e-3, seed=0)
    moved = [name for name, b in model.named_buffers() if "running" in name and not torch.equal(b, before[name])]
    assert len(moved) == (len(before) if train_bn else 0)


def test_the_tokenizer_is_left_alone():
    model = tiny.build()
    batch = small_model.batch(model, 4)
    before = {name: value.clone() for name, value in model.vae.state_dict().items()}
    SftLearner(model, SftStepConfig(train_bn=True)).step([batch], lr=1e-2, seed=0)
    assert not model.vae.training
    assert all(torch.equal(value, before[name]) for name, value in model.vae.state_dict().items())


def test_only_matrices_decay():
    model = tiny.build()
    decayed, others = decay_groups(model, 0.05)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
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
    for seed in range(20):
        learner.step([batch, batch], lr=1e-9, seed=seed)
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
    first = learner.step([batch], lr=3e-3, seed=0)
    for _ in range(80):
        last = learner.step([batch], lr=3e-3, seed=0)
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
    learner.step([batch], lr=1e-3, seed=0)
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
    assert not math.isfinite(learner.step([batch], lr=1e-3, seed=0).grad_norm)
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


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def part(batch: ConditionBatch, rows: slice) -> ConditionBatch:
    tokens = None if batch.tokens is None else batch.tokens[rows]
    return ConditionBatch(batch.keys[rows], batch.content[rows], batch.style[rows], batch.target[rows], tokens)


def gradients(config: SftStepConfig, cuts: list[slice], seed: int = 0, drop_path: float = 0.0) -> list[torch.Tensor]:
    """Those of one step on a batch of five, in micro-batches."""
    model = tiny.build()
    for block in model.blocks:
        block.drop_path.rate = drop_path
    batch = small_model.batch(model, 5)
    SftLearner(model, config).step([part(batch, cut) for cut in cuts], lr=1e-9, seed=seed)
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_micro_batches_add_up_to_the_batch():
    config = SftStepConfig(grad_clip=1e9)
    whole = gradients(config, [slice(0, 5)])
    # Data parallelism waits for the gradient of every parameter that has requires_grad.
    assert len(whole) == sum(p.requires_grad for p in tiny.build().parameters())
    parts = gradients(config, [slice(0, 1), slice(1, 5)])
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_recomputed_blocks_give_the_same_gradients():
    plain = gradients(SftStepConfig(), [slice(0, 5)], drop_path=0.5)
    again = gradients(SftStepConfig(recompute=True), [slice(0, 5)], drop_path=0.5)
    assert all(map(torch.equal, plain, again))


def test_a_step_is_a_function_of_weights_triplets_and_seed():
    config = SftStepConfig(alpha_jitter=0.1)
    cuts = [slice(0, 2), slice(2, 5)]
    torch.manual_seed(5)
    first = gradients(config, cuts, seed=3, drop_path=0.5)
    torch.manual_seed(6)
    assert all(map(torch.equal, first, gradients(config, cuts, seed=3, drop_path=0.5)))
    assert not all(map(torch.equal, first, gradients(config, cuts, seed=4, drop_path=0.5)))


def test_bf16_computes_logits_and_loss_in_fp32(monkeypatch):
    model = tiny.build()
    batch = small_model.batch(model, 4)
    seen: list[torch.Tensor] = []
    logits = model.head_logits
    monkeypatch.setattr(model, "head_logits", lambda *args: seen.append(args[0]) or seen.append(logits(*args)) or seen[-1])
    exact = SftLearner(model, SftStepConfig()).validate(batch).loss
    learner = SftLearner(model, SftStepConfig(precision="bf16"))
    close = learner.validate(batch).loss
    assert close == pytest.approx(exact, rel=0.01)
    assert close != exact
    assert seen[3].dtype == torch.float32
    # A head computed in bfloat16 would repeat logits: it has eight significant bits.
    assert seen[3].unique().numel() > 0.9 * seen[3].numel()
    before = weights(model)
    learner.step([batch], lr=1e-3, seed=0)
    assert {value.dtype for name, value in model.named_parameters()} == {torch.float32}
    assert not torch.equal(before["head.weight"], model.head.weight)


def test_known_tokens_spare_the_tokenizer(monkeypatch):
    model = tiny.build()
    batch = small_model.batch(model, 3)
    expected = SftLearner(model, SftStepConfig()).validate(batch)
    roles = [torch.cat(tokenize(model.vae, image), 1) for image in (batch.content, batch.style, batch.target)]
    known = dataclasses.replace(batch, tokens=torch.stack(roles, 1).to(torch.int16))
    monkeypatch.setattr(model.vae, "img_to_idxBl", None)
    assert torch.equal(SftLearner(model, SftStepConfig()).validate(known).sums, expected.sums)


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
