"""LoRA-wrapped states: baked on load, and refused without their base."""

from __future__ import annotations

import re

import pytest
import small_model
import torch
from checkpoint_files import assert_same, copied, refused
from peft import get_peft_model_state_dict

from stylevar.baking import bake_lora
from stylevar.checkpoint import load_pair


def reference_names(adapters, bias="bias"):
    """The released LoRA-wrapped form: base_weight, lora_A and lora_B beside each other."""
    state = {}
    for key, value in adapters.model.state_dict().items():
        key = re.sub(r"\.base_layer\.weight$", ".base_weight", key).replace(".base_layer.bias", f".{bias}")
        state[re.sub(r"\.(lora_[AB])\.default\.weight$", r".\1", key)] = value.clone()
    return state


@pytest.mark.parametrize("spelling", ["released", "base_bias", "peft"])
def test_lora_wrapped_states_are_baked(vae_file, tmp_path, spelling):
    wrapped = small_model.build()
    plain = small_model.logits(wrapped)
    adapters = small_model.adapt(wrapped)
    expected = small_model.logits(wrapped)
    assert (expected - plain).abs().max() > 0.1
    state = copied(adapters.peft.state_dict())
    if spelling != "peft":
        state = reference_names(adapters, "bias" if spelling == "released" else "base_bias")
        assert {"blocks.0.attn.proj.base_weight", "blocks.0.attn.proj.lora_A", "blocks.0.attn.proj.lora_B"} <= set(state)
    torch.save({"model": state}, tmp_path / "lora.pth")
    _, loaded = load_pair(str(tmp_path / "lora.pth"), vae_file)
    torch.testing.assert_close(small_model.logits(loaded), expected, atol=1e-5, rtol=0)


def test_bake_lora_arithmetic():
    base, lora_a, lora_b = torch.randn(6, 5), torch.randn(2, 5), torch.randn(6, 2)
    state = {"x.base_weight": base, "x.lora_A": lora_a, "x.lora_B": lora_b, "x.bias": torch.ones(6), "y": torch.ones(1)}
    baked = bake_lora(state, "here")
    assert set(baked) == {"x.weight", "x.bias", "y"}
    torch.testing.assert_close(baked["x.weight"], base + 2 * lora_b @ lora_a)
    baked = bake_lora({**state, "x.scaling": torch.tensor(0.5)}, "here")
    torch.testing.assert_close(baked["x.weight"], base + 0.5 * lora_b @ lora_a)
    plain = {"x.weight": base, "x.bias": torch.ones(6)}
    assert_same(bake_lora(plain, "here"), plain)


def test_incomplete_lora_layers_are_refused():
    state = {"x.base_weight": torch.ones(6, 5), "x.lora_A": torch.ones(2, 5), "x.lora_B": torch.ones(6, 2)}
    with refused("here", "without a base", r"x and 0 more", "merge"):
        bake_lora({k: v for k, v in state.items() if "base" not in k}, "here")
    for part in ("lora_A", "lora_B"):
        with refused("here", "only one of lora_A and lora_B of x"):
            bake_lora({k: v for k, v in state.items() if part not in k}, "here")
    with refused("here", "of x do not fit", re.escape("[2, 4]")):
        bake_lora({**state, "x.lora_A": torch.ones(2, 4)}, "here")


@pytest.mark.parametrize("spelling", ["released", "peft file", "peft live"])
def test_adapters_without_a_base_are_refused(tmp_path, vae_file, spelling):
    adapters = small_model.adapt(small_model.build())
    state = {
        "released": {k: v for k, v in reference_names(adapters).items() if ".lora_" in k},
        "peft file": get_peft_model_state_dict(adapters.peft),
        "peft live": {k: v for k, v in adapters.peft.state_dict().items() if ".lora_" in k},
    }[spelling]
    torch.save({"model": state}, tmp_path / "adapters.pth")
    with refused("adapters.pth holds adapters only", "--resume", "merged checkpoint"):
        load_pair(str(tmp_path / "adapters.pth"), vae_file)


def test_a_layer_without_its_base_is_refused(tmp_path, vae_file):
    state = reference_names(small_model.adapt(small_model.build()))
    del state["blocks.1.ffn.fc1.base_weight"]
    torch.save({"model": state}, tmp_path / "lora.pth")
    with refused("without a base", r"blocks\.1\.ffn\.fc1"):
        load_pair(str(tmp_path / "lora.pth"), vae_file)
