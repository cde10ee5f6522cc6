"""Reading checkpoints in every published form, their configs, and writing our own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import small_model
import torch
from checkpoint_files import assert_same, copied, refused
from safetensors.torch import save_file

from stylevar.checkpoint import infer_config, load_pair, load_vae, save_model, save_vae
from stylevar.config import ModelConfig
from stylevar.lowrank import factors
from stylevar.sampling_config import SamplingConfig
from stylevar.weight_files import read_file


def trainer_form(model):
    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    inner = {"vae_local": copied(model.vae.state_dict()), "var_wo_ddp": copied(model.state_dict()), "var_opt": optimizer}
    return {"epoch": 3, "iter": 7, "args": {"depth": 2}, "trainer": inner}


def named(state, *changes):
    """`state` with parts of its names replaced."""
    found = copied(state)
    for old, new in changes:
        found = {key.replace(old, new): value for key, value in found.items()}
    return found


def fsdp_form(model):
    inner = named(model.state_dict(), (".attn.", "._fsdp_wrapped_module.attn."))
    return {"model": {f"_fsdp_wrapped_module.{key}": value for key, value in inner.items()}}


def lightning_form(model):
    both = {**copied(model.state_dict(), "model."), **copied(model.vae.state_dict(), "vae.")}
    return {"state_dict": both, "pytorch-lightning_version": "2.4.0", "loops": {}, "epoch": 1}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: {"model": copied(m.state_dict()), "epoch": 4},
        lambda m: copied(m.state_dict()),
        lambda m: {"model": copied(m.state_dict(), "module.")},
        lambda m: {"state_dict": {"model": copied(m.state_dict(), "_orig_mod.module.")}},
        lambda m: named(m.state_dict(), ("blocks.0.", "blocks.0._orig_mod."), ("head.", "_orig_mod.head.")),
        lambda m: named(m.state_dict(), ("blocks.1.", "blocks.1._checkpoint_wrapped_module.")),
        lambda m: {"model": copied(m.state_dict()), "state_dict": copied(m.state_dict(), "module.")},
        fsdp_form,
        lightning_form,
        trainer_form,
    ],
    ids=["model", "bare", "ddp", "compiled", "inner compiled", "recomputed", "twice", "fsdp", "lightning", "trainer"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_forms(model, vae_file, tmp_path, wrap, zipped):
    path = tmp_path / "some.pth"
    torch.save(wrap(model), path, _use_new_zipfile_serialization=zipped)
    _, loaded = load_pair(str(path), vae_file)
    assert_same(loaded.state_dict(), model.state_dict())
    assert not loaded.training
    assert loaded.arch == model.arch


@pytest.mark.parametrize("form", [trainer_form, lightning_form])
def test_one_trainer_file_holds_both(model, tmp_path, form):
    path = tmp_path / "trainer.pth"
    torch.save(form(model), path)
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


def test_loading_draws_no_initial_weights(model, vae_file, tmp_path):
    save_model(model.state_dict(), model.arch, tmp_path)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    vae, loaded = load_pair(str(tmp_path), vae_file)
    assert torch.equal(torch.rand(1), expected)
    for buffers, own in ((loaded.named_buffers(), model), (vae.named_buffers(), model.vae)):
        assert_same(dict(buffers), dict(own.named_buffers()))  # those that are not in the file, too
    assert torch.equal(small_model.logits(loaded), small_model.logits(model))
    assert not any(module.training for module in (*loaded.modules(), *vae.modules()))


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
    with refused("config.json", "is not JSON"):
        load_pair(str(tmp_path / "model.pth"), vae_file)


def test_config_round_trip_and_bounds(tmp_path, model):
    model.arch.save(tmp_path / "config.json")
    assert ModelConfig.load(tmp_path / "config.json") == model.arch
    assert "sampling" not in json.loads((tmp_path / "config.json").read_text())  # as it was before there was such a key
    cooler = dataclasses.replace(model.arch, sampling=SamplingConfig(temperature=0.5))
    cooler.save(tmp_path / "config.json")
    assert ModelConfig.load(tmp_path / "config.json") == cooler
    assert json.loads((tmp_path / "config.json").read_text())["sampling"] == {"temperature": 0.5}
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
        {"sampling": {"temperature": 0}},
    ):
        with refused(next(iter(bad))):
            ModelConfig.from_dict({**model.arch.to_dict(), **bad})
