"""Reading checkpoints in every published form, and refusing what is not one."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import small_model
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torchvision.models import resnet18

from stylevar import UserError
from stylevar.checkpoint import (
    bake_lora,
    infer_config,
    is_vanilla_var,
    load_into,
    load_pair,
    load_vae,
    load_vanilla_var,
    read_file,
    read_model_state,
    save_model,
    save_vae,
)
from stylevar.config import ModelConfig
from stylevar.lowrank import factors


@pytest.fixture(scope="module")
def model():
    return small_model.build()


@pytest.fixture(scope="module")
def vae_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("vae") / "vqvae.safetensors"
    save_vae(model.vae, path)
    return str(path)


def copied(state, prefix=""):
    return OrderedDict((prefix + key, value.clone(memory_format=torch.contiguous_format)) for key, value in state.items())


def assert_same(state, expected):
    assert list(state) == list(expected)
    for key, value in expected.items():
        assert torch.equal(state[key], value), key
        assert state[key].dtype == value.dtype, key


def refused(*patterns):
    """UserError of one line in which all `patterns` occur."""
    return pytest.raises(UserError, match="(?s)" + "".join(f"(?=.*{p})" for p in (r"\A[^\n]*\Z", *patterns)))


# Forms


def trainer_form(model):
    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    inner = {"vae_local": copied(model.vae.state_dict()), "var_wo_ddp": copied(model.state_dict()), "var_opt": optimizer}
    return {"epoch": 3, "iter": 7, "args": {"depth": 2}, "trainer": inner}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: {"model": copied(m.state_dict()), "epoch": 4},
        lambda m: copied(m.state_dict()),
        lambda m: {"model": copied(m.state_dict(), "module.")},
        lambda m: {"state_dict": {"model": copied(m.state_dict(), "_orig_mod.module.")}},
        trainer_form,
    ],
    ids=["model", "bare", "ddp", "compiled", "trainer"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_forms(model, vae_file, tmp_path, wrap, zipped):
    path = tmp_path / "some.pth"
    torch.save(wrap(model), path, _use_new_zipfile_serialization=zipped)
    _, loaded = load_pair(str(path), vae_file)
    assert_same(loaded.state_dict(), model.state_dict())
    assert not loaded.training
    assert loaded.arch == model.arch


def test_one_trainer_file_holds_both(model, tmp_path):
    path = tmp_path / "trainer.pth"
    torch.save(trainer_form(model), path)
    vae, loaded = load_pair(str(path), str(path))
    assert_same(vae.state_dict(), model.vae.state_dict())
    assert_same(loaded.state_dict(), model.state_dict())
    assert loaded.vae is vae
    assert not any(p.requires_grad for p in vae.parameters())


def test_safetensors_file_and_folder(model, vae_file, tmp_path):
    alphas = (0.25, 0.5, 0.125)
    config = ModelConfig.from_dict({**model.arch.to_dict(), "alphas": alphas})
    save_model(model.state_dict(), config, tmp_path)
    for source in (tmp_path, tmp_path / "model.safetensors"):
        _, loaded = load_pair(str(source), vae_file)
        assert_same(loaded.state_dict(), model.state_dict())
        assert loaded.arch.alphas == alphas


def test_load_vae(model, vae_file, tmp_path):
    assert_same(load_vae(vae_file, model.arch).state_dict(), model.vae.state_dict())
    assert_same(load_vae(str(Path(vae_file).parent), model.arch).state_dict(), model.vae.state_dict())
    save_file({"something": torch.zeros(1)}, tmp_path / "other.safetensors")
    with refused("no VQ-VAE", "quantize.embedding.weight"):
        load_vae(str(tmp_path / "other.safetensors"), model.arch)


def test_the_buffers_of_a_checkpoint_are_carried_but_not_computed_with(model):
    expected = small_model.logits(model)
    other = small_model.build()
    state = copied(model.state_dict())
    state["attn_bias_for_masking"] = torch.zeros_like(state["attn_bias_for_masking"])
    state["lvl_1L"] = torch.zeros_like(state["lvl_1L"])
    for i in range(model.arch.depth):
        state[f"blocks.{i}.attn.zero_k_bias_guide"] += 3
    other.load_state_dict(state, strict=True)
    assert torch.equal(small_model.logits(other), expected)
    assert_same(other.state_dict(), state)


# LoRA


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


# Refusals


def saved(state, tmp_path):
    torch.save({"model": state}, tmp_path / "bad.pth")
    return str(tmp_path / "bad.pth")


def test_missing_and_unexpected_keys_are_named(model, vae_file, tmp_path):
    state = copied(model.state_dict())
    gone = [k for k in state if "scale_mul" in k or k.startswith("blocks.1.ffn")]
    for key in gone:
        if "blocks.0" not in key:
            del state[key]
    gone = [k for k in gone if "blocks.0" not in k]
    state["stranger.weight"] = torch.zeros(2)
    with refused(
        "bad.pth", rf"{len(gone)} missing \({re.escape(', '.join(gone[:3]))}, \.\.\.\)", r"1 unexpected \(stranger\.weight\)"
    ):
        load_pair(saved(state, tmp_path), vae_file)


def test_missing_vae_key(model, tmp_path):
    state = copied(model.vae.state_dict())
    del state["decoder.conv_in.weight"]
    save_file(state, tmp_path / "vqvae.safetensors")
    with refused("vqvae.safetensors", r"1 missing \(decoder\.conv_in\.weight\)", "complete checkpoint"):
        load_vae(str(tmp_path), model.arch)


@pytest.mark.parametrize("key", ["lvl_1L", "head.weight", "feat_emb.weight"])
def test_missing_landmarks_of_the_architecture(model, vae_file, tmp_path, key):
    state = copied(model.state_dict())
    del state[key]
    with refused("bad.pth", key):
        load_pair(saved(state, tmp_path), vae_file)


def test_not_a_model_at_all(model, vae_file, tmp_path):
    with refused("holds no StyleVAR weights", "pos_1LC"):
        load_pair(vae_file, vae_file)
    state = {"pos_1LC": model.pos_1LC.detach().clone()}
    with refused("no architecture fits"):
        load_pair(saved(state, tmp_path), vae_file)


def test_another_width_is_refused(model, vae_file, tmp_path):
    (tmp_path / "small").mkdir()
    save_model(small_model.build(depth=1).state_dict(), model.arch, tmp_path / "small")  # the config says depth 2
    with refused("missing", r"blocks\.1\."):
        load_pair(str(tmp_path / "small"), vae_file)
    state = copied(model.state_dict())
    state["head.bias"] = torch.zeros(7)
    state["pos_start"] = torch.zeros(1, 1, 64)
    with refused(
        "another size", r"pos_start is \[1, 1, 64\], not \[1, 1, 128\]", r"head\.bias is \[7\], not \[32\]", "width"
    ):
        load_into(model, state, "here")


def test_a_tokenizer_of_another_shape_is_refused(model, tmp_path):
    other = small_model.build(V=16)
    save_vae(other.vae, tmp_path / "vqvae.safetensors")
    with refused("another size", r"quantize\.embedding\.weight is \[16, 8\], not \[32, 8\]"):
        load_vae(str(tmp_path), model.arch)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:5], lambda b: b"", lambda b: b"<html>\n404\n"])
def test_damaged_files_are_refused(tmp_path, ending, damage):
    path = tmp_path / f"model{ending}"
    tensors = {"pos_1LC": torch.zeros(100), "x": torch.zeros(100)}
    save_file(tensors, path) if ending == ".safetensors" else torch.save(tensors, path)
    path.write_bytes(damage(path.read_bytes()))
    with refused(f"model{ending} is no readable checkpoint", "fetch it again"):
        read_model_state(path)
    with refused("does not exist"):
        read_model_state(tmp_path / f"nowhere{ending}")


def test_legacy_torch_file_cut_anywhere(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"pos_1LC": torch.zeros(4), "name": "x"}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for end in range(len(whole) - 1):
        path.write_bytes(whole[:end])
        with refused("no readable checkpoint"):
            read_file(path)


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_run(tmp_path, model, zipped):
    marker, path = tmp_path / "ran", tmp_path / "evil.pth"
    torch.save({"model": model.state_dict(), "extra": Evil(marker)}, path, _use_new_zipfile_serialization=zipped)
    torch.load(path, weights_only=False)["extra"].close()
    assert marker.exists()  # the trap works
    marker.unlink()
    with refused("evil.pth holds more than tensors", "open", "safetensors"):
        read_model_state(path)
    assert not marker.exists()


# Configs


SHAPES = {
    "plain": {},
    "levels": {"ch": 64, "ch_mult": (1, 2), "patch_nums": (1, 3, 4), "V": 48, "Cvae": 16, "depth": 3},
    "phi per scale": {"share_quant_resi": 0},
    "one phi": {"share_quant_resi": 1},
    "shared adaLN": {"shared_aln": True, "attn_l2_norm": False, "style_enc_dim": 128},
}


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_infer_config(tmp_path, changes):
    model = small_model.build(**changes)
    assert infer_config(model.state_dict(), model.vae.state_dict()) == model.arch
    save_vae(model.vae, tmp_path / "vqvae.safetensors")
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    _, loaded = load_pair(str(tmp_path / "model.pth"), str(tmp_path))
    assert loaded.arch == model.arch
    assert torch.equal(small_model.logits(loaded), small_model.logits(model))


def test_infer_config_at_the_published_scales():
    model = small_model.build(**small_model.PAPER_SCALES)
    config = infer_config(model.state_dict(), model.vae.state_dict())
    assert config == model.arch
    assert config.alphas == (0.2, 0.3, 0.4, 0.4, 0.5, 0.5, 0.6, 0.6, 0.7, 0.8)


def test_alphas_come_from_the_argument_else_the_config_else_the_default(model, vae_file, tmp_path):
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    init = str(tmp_path / "model.pth")
    assert load_pair(init, vae_file)[1].arch.alphas == (0.2, 0.5, 0.8)
    assert load_pair(init, vae_file, alphas=(0.1, 0.2, 0.3))[1].arch.alphas == (0.1, 0.2, 0.3)
    ModelConfig.from_dict({**model.arch.to_dict(), "alphas": (0.0, 0.5, 1.0)}).save(tmp_path / "config.json")
    assert load_pair(init, vae_file)[1].arch.alphas == (0.0, 0.5, 1.0)
    _, loaded = load_pair(init, vae_file, alphas=(0.1, 0.2, 0.3))
    assert loaded.arch.alphas == (0.1, 0.2, 0.3)
    assert loaded.alphas()[:, 0].tolist() == pytest.approx([0.1] + 4 * [0.2] + 9 * [0.3])
    with refused("4 alphas for 3 scales"):
        load_pair(init, vae_file, alphas=(0.1, 0.2, 0.3, 0.4))


def test_config_files_that_are_not_ours(model, vae_file, tmp_path):
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "var", "depth": 20}')
    assert load_pair(str(tmp_path / "model.pth"), vae_file)[1].arch == model.arch
    config.write_text(json.dumps({**model.arch.to_dict(), "heads": 3}))
    with refused("config.json", "unknown keys", "heads"):
        load_pair(str(tmp_path / "model.pth"), vae_file)
    config.write_text(json.dumps(model.arch.to_dict())[:-20])
    with refused("config.json", "readable"):
        load_pair(str(tmp_path / "model.pth"), vae_file)


def test_config_round_trip_and_bounds(tmp_path, model):
    model.arch.save(tmp_path / "config.json")
    assert ModelConfig.load(tmp_path / "config.json") == model.arch
    for bad in (
        {"patch_nums": ()},
        {"patch_nums": (1, 3, 2)},
        {"patch_nums": (0, 1, 2)},
        {"V": 0},
        {"V": 2**15 + 1},
        {"ch": 48},
        {"ch": 0},
        {"depth": 0},
        {"share_quant_resi": -1},
        {"style_enc_dim": 100},
        {"alphas": (0.1, 0.2, 1.1)},
        {"alphas": (0.1, 0.2)},
    ):
        with refused(next(iter(bad))):
            ModelConfig.from_dict({**model.arch.to_dict(), **bad})


# Vanilla VAR


def vanilla_state(model):
    """What the model would have been before it had two images: one attention matrix, class embeddings, no encoders."""
    state, expected = {}, {}
    for key, value in model.state_dict().items():
        if "_encoder." in key or key.startswith("feat_emb.") or ".zero_k_bias_" in key:
            continue
        value = torch.randn_like(value) if value.is_floating_point() and "attn_bias_for" not in key else value.clone()
        if "_target" in key:
            expected[key] = expected[key.replace("_target", "_guide")]
            continue
        expected[key] = value
        state[key.replace("_guide", "")] = value
    state["class_emb.weight"] = torch.randn(1001, model.arch.width)
    for i in range(model.arch.depth):
        state[f"blocks.{i}.attn.zero_k_bias"] = torch.zeros(model.arch.width)
    return state, expected


@pytest.fixture(scope="module")
def imagenet_encoder():
    net = resnet18()
    with torch.no_grad():
        for name, buffer in net.named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand_like(buffer) + 0.5)
            else:
                buffer.fill_(77)
    return net.state_dict()


@pytest.fixture
def start():
    """A model to be filled, with full-size encoders."""
    torch.manual_seed(5)
    return small_model.build(depth=1, style_enc_dim=512)


def test_vanilla_var_fills_every_weight(start, imagenet_encoder):
    state, expected = vanilla_state(start)
    before = copied(start.state_dict())
    assert is_vanilla_var(state)
    assert not is_vanilla_var(before)
    load_vanilla_var(start, state, "var.pth", imagenet_encoder)
    after = start.state_dict()
    for key, value in expected.items():
        assert torch.equal(after[key], value), key
    unchanged = [k for k in after if k not in expected and "_encoder." not in k]
    assert unchanged == [
        "blocks.0.attn.zero_k_bias_guide",
        "blocks.0.attn.zero_k_bias_target",
        "feat_emb.weight",
        "feat_emb.bias",
    ] or sorted(unchanged) == sorted(
        ["feat_emb.weight", "feat_emb.bias"] + [f"blocks.0.attn.zero_k_bias_{s}" for s in ("guide", "target")]
    )
    assert all(torch.equal(after[k], before[k]) for k in unchanged)
    assert torch.equal(after["blocks.0.attn.mat_qkv_guide.weight"], after["blocks.0.attn.mat_qkv_target.weight"])


def test_vanilla_var_starts_both_encoders_from_resnet18(start, imagenet_encoder):
    load_vanilla_var(start, vanilla_state(start)[0], "var.pth", imagenet_encoder)
    net = resnet18()
    net.load_state_dict(imagenet_encoder)
    net.fc = torch.nn.Identity()
    net.eval()
    image = torch.rand(1, 3, 40, 40) * 2 - 1
    for encoder in (start.style_encoder, start.content_encoder):
        ours, theirs = encoder.state_dict(), net.state_dict()
        assert len(ours) == len(theirs) == 120
        for (a, mine), (b, its) in zip(ours.items(), theirs.items(), strict=True):
            assert torch.equal(mine, its), (a, b)
        assert sum("running_" in k for k in ours) == 40
        with torch.no_grad():
            assert torch.equal(encoder(image).flatten(1), net(image))


@pytest.mark.parametrize(
    "key", ["blocks.0.attn.mat_qkv.weight", "blocks.0.attn.q_bias", "pos_1LC", "head_nm.ada_lin.1.bias"]
)
def test_vanilla_var_with_a_missing_key(start, imagenet_encoder, key):
    state, _ = vanilla_state(start)
    before = copied(start.state_dict())
    del state[key]
    with refused("var.pth", "missing", re.escape(key.split("mat_qkv")[0].split("q_bias")[0])):
        load_vanilla_var(start, state, "var.pth", imagenet_encoder)
    assert_same(start.state_dict(), before)


def test_vanilla_var_accounts_for_every_key(start, imagenet_encoder):
    state, _ = vanilla_state(start)
    with refused("1 unexpected", r"rope\.freqs"):
        load_vanilla_var(start, {**state, "rope.freqs": torch.zeros(1)}, "var.pth", imagenet_encoder)
    incomplete = {k: v for k, v in imagenet_encoder.items() if k != "layer4.1.bn2.running_var"}
    with refused("2 missing", r"style_encoder\.7\.1\.bn2\.running_var"):
        load_vanilla_var(start, state, "var.pth", incomplete)
    with refused("2 unexpected", r"style_encoder\.layer5\.0\.weight"):
        load_vanilla_var(start, state, "var.pth", {**imagenet_encoder, "layer5.0.weight": torch.zeros(1)})


def test_vanilla_var_is_no_init(model, vae_file, tmp_path):
    torch.save(vanilla_state(model)[0], tmp_path / "var_d2.pth")
    with refused("vanilla VAR", "start of SFT"):
        load_pair(str(tmp_path / "var_d2.pth"), vae_file)


# Saving


def test_half_precision_round_trip(model, tmp_path):
    save_model(model.state_dict(), model.arch, tmp_path, half=True)
    save_vae(model.vae, tmp_path / "vqvae.safetensors", half=True)
    stored = read_file(tmp_path / "model.safetensors")
    assert stored["head.weight"].dtype == torch.float16
    assert stored["head.bias"].dtype == torch.float32
    assert stored["lvl_1L"].dtype == torch.int64
    vae, loaded = load_pair(str(tmp_path), str(tmp_path))
    for mine, original in ((vae, model.vae), (loaded, model)):
        for key, value in original.state_dict().items():
            again = mine.state_dict()[key]
            assert again.dtype == value.dtype
            rounded = value.half().to(value.dtype) if value.is_floating_point() and value.ndim >= 2 else value
            assert torch.equal(again, rounded), key
    torch.testing.assert_close(small_model.logits(loaded), small_model.logits(model), atol=0.05, rtol=0)
    again = tmp_path / "again"
    again.mkdir()
    save_model(loaded.state_dict(), loaded.arch, again, half=True)
    assert_same(read_file(again / "model.safetensors"), stored)


def test_saved_state_loads_strictly_under_the_released_names(tmp_path):
    wrapped = small_model.build()
    adapters = small_model.adapt(wrapped)
    expected = small_model.logits(wrapped)
    save_model(adapters.baked_state(), wrapped.arch, tmp_path)
    fresh = small_model.build()
    fresh.load_state_dict(read_file(tmp_path / "model.safetensors"), strict=True)
    torch.testing.assert_close(small_model.logits(fresh), expected, atol=1e-5, rtol=0)
    assert all(factors(layer)[1].abs().max() > 0 for layer in adapters.layers.values())
