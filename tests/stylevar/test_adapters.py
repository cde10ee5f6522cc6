"""LoRA on every block: off is the base, effective weights are the same kept or baked in, and nothing else is trained."""

from __future__ import annotations

import pytest
import small_model
import torch
from peft.tuners.lora import Linear as LoraLinear

from stylevar import build_vae_stylevar
from stylevar.adapters import Adapters
from stylevar.checkpoint import load_into, read_model_state, save_model
from stylevar.conditions import encode_conditions, guide_queries, teacher_forced
from stylevar.errors import UserError
from stylevar.lowrank import base_weight, effective_rows, factors, kept_effective, project
from stylevar.norm import modulate


@pytest.fixture
def model():
    return small_model.build()


def logp(model, seed: int = 0) -> torch.Tensor:
    return small_model.logits(model, seed=seed).log_softmax(-1)


def test_trainable_parameters_at_depth_20():
    _, model = build_vae_stylevar(device="meta")
    adapters = Adapters(model, rank=256)
    assert sum(p.numel() for p in adapters.parameters()) == 131_072_000
    assert len(adapters.layers) == 5 * 20


def test_only_adapters_are_trained(model):
    adapters = Adapters(model, rank=3)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert len(adapters.parameters()) == 2 * 5 * model.arch.depth
    assert not any(p.requires_grad for p in model.vae.parameters())


def test_fresh_adapters_change_no_bit(model):
    before = small_model.logits(model)
    adapters = Adapters(model, rank=4, seed=1)
    assert torch.equal(small_model.logits(model), before)
    with adapters.effective_weights():
        assert torch.equal(small_model.logits(model), before)


def test_off_is_the_base_to_the_bit(model):
    before = small_model.logits(model)
    adapters = small_model.adapt(model)
    assert (small_model.logits(model) - before).abs().max() > 1e-2
    with adapters.off():
        assert torch.equal(small_model.logits(model), before)
    with adapters.effective_weights(), adapters.off():
        assert torch.equal(small_model.logits(model), before)


def test_the_effective_weight_is_w_plus_twice_b_a(model):
    adapters = small_model.adapt(model, rank=4)
    for layer in adapters.layers.values():
        lora_a, lora_b, scale = factors(layer)
        assert scale == 2.0
        expected = base_weight(layer) + 2.0 * lora_b @ lora_a
        torch.testing.assert_close(effective_rows(layer, slice(None)), expected, atol=1e-6, rtol=0)


def test_our_projection_is_pefts(model):
    """PEFT's own forward, of base and low-rank parts apart, gives the same numbers and gradients."""
    adapters = small_model.adapt(model)
    layer: LoraLinear = adapters.layers["blocks.0.ffn.fc1"]
    x = torch.randn(2, 3, 5, layer.in_features, generator=torch.Generator().manual_seed(0), requires_grad=True)
    leaves = [x, *factors(layer)[:2]]
    ours, theirs = project(layer, x), layer(x)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    for a, b in zip(*(torch.autograd.grad((y * weights).sum(), leaves) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-4)


def test_kept_and_refreshed_weights_follow_the_adapters(model):
    adapters = small_model.adapt(model)
    expected = logp(model)
    with adapters.effective_weights():
        assert torch.equal(logp(model), expected)
        with torch.no_grad():
            for parameter in adapters.parameters():
                parameter.mul_(0.5)
        adapters.refresh()
        halved = logp(model)
    assert torch.equal(logp(model), halved)
    assert not torch.equal(halved, expected)


def test_baking_keeps_the_policy_and_resets_the_reference(model):
    adapters = small_model.adapt(model)
    style, content, tokens = small_model.inputs(model)
    state = encode_conditions(model, style, content)

    def log_probs() -> torch.Tensor:
        with torch.no_grad():
            return teacher_forced(model, state, guide_queries(model, state), tokens.unsqueeze(1)).log_softmax(-1)

    policy, fingerprint = log_probs(), adapters.fingerprint()
    adapters.bake()
    adapters.reset(seed=5)
    assert torch.equal(log_probs(), policy)
    assert adapters.fingerprint() == fingerprint
    with adapters.off():
        reference = log_probs()
    # KL(policy || reference) is exactly 0.
    assert torch.equal(reference, log_probs())


def test_state_and_folder_round_trips(model, tmp_path):
    adapters = small_model.adapt(model)
    expected, state = logp(model), adapters.state()
    adapters.save(tmp_path)
    adapters.reset(seed=9)
    assert not torch.equal(logp(model), expected)
    adapters.load(state)
    assert torch.equal(logp(model), expected)
    adapters.reset(seed=9)
    adapters.load_folder(tmp_path)
    assert torch.equal(logp(model), expected)


def test_a_state_is_a_copy(model):
    adapters = small_model.adapt(model)
    expected, state = logp(model), adapters.state()
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.1)
    adapters.load(state)
    assert torch.equal(logp(model), expected)


def test_the_saved_policy_is_a_plain_checkpoint(model, tmp_path):
    adapters = small_model.adapt(model)
    expected = logp(model)
    save_model(adapters.baked_state(), model.arch, tmp_path)
    other = small_model.build()
    load_into(other, read_model_state(tmp_path / "model.safetensors"), "saved")
    torch.testing.assert_close(logp(other), expected, atol=1e-6, rtol=0)
    # Saving bakes nothing.
    with adapters.off():
        base = logp(model)
    assert torch.equal(base, logp(small_model.build()))


def test_fingerprints_tell_policies_apart(model):
    adapters = Adapters(model, rank=4, seed=1)
    base = adapters.fingerprint()
    adapters.reset(seed=2)
    assert adapters.fingerprint() == base  # B is zero, whatever A is
    with torch.no_grad():
        factors(adapters.layers["blocks.1.attn.proj"])[1][0, 0] = 1e-3
    assert adapters.fingerprint() != base


def test_fresh_adapters_depend_on_their_seed_only(model):
    first = Adapters(model, rank=4, seed=3).state()
    torch.manual_seed(99)
    second = Adapters(small_model.build(), rank=4, seed=3).state()
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_adapters_of_another_rank_are_refused(model, tmp_path):
    Adapters(small_model.build(), rank=2).save(tmp_path)
    with pytest.raises(UserError, match="--lora-rank"):
        Adapters(model, rank=4).load_folder(tmp_path)
    with pytest.raises(UserError, match="--lora-rank 0"):
        Adapters(small_model.build(), rank=0)


def test_weights_kept_in_place_stay_there_and_follow_the_adapters():
    adapters = small_model.adapt(small_model.build())
    adapters.keep_in_place = True
    layers = list(adapters.layers.values())

    def kept() -> list[torch.Tensor]:
        with adapters.effective_weights():
            return [weight for layer in layers if (weight := kept_effective(layer)) is not None]

    before = kept()
    assert len(before) == len(layers)
    values = [tensor.clone() for tensor in before]
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.mul_(2)
    for tensor, again, old, layer in zip(before, kept(), values, layers, strict=True):
        assert again.data_ptr() == tensor.data_ptr()
        assert not torch.equal(again, old)
        assert kept_effective(layer) is None


@pytest.mark.parametrize("learns_input", [True, False])
def test_what_prepares_an_input_is_differentiated_and_not_kept(model, learns_input):
    adapters = small_model.adapt(model)
    layer: LoraLinear = adapters.layers["blocks.0.ffn.fc1"]
    x = torch.randn(2, 3, 5, layer.in_features, requires_grad=learns_input)
    scale, shift = torch.randn(2, 1, 1, 1, layer.in_features)
    leaves = [*factors(layer)[:2], *([x] if learns_input else [])]
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ours = project(layer, x, prepare=modulate, constants=(scale, shift))
    plain = project(layer, modulate(x, scale, shift))
    assert torch.equal(ours, plain)
    assert [t.data_ptr() for t in kept if t.shape == x.shape] == [x.data_ptr()]
    for a, b in zip(*(torch.autograd.grad(y.sin().sum(), leaves) for y in (ours, plain)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="freeze"):
        project(layer, x, prepare=modulate, constants=(scale.requires_grad_(), shift))
