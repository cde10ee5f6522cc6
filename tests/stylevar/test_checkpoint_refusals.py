"""What is no checkpoint of the model: refused in one line, with the remedy, and without running its code."""

from __future__ import annotations

import re

import pytest
import small_model
import torch
from checkpoint_files import copied, refused, saved
from safetensors.torch import save_file

from stylevar.checkpoint import load_into, load_pair, load_vae, read_model_state, save_model, save_vae
from stylevar.weight_files import read_file


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
    with refused("contains no StyleVAR weights", "pos_1LC"):
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
    with refused(f"model{ending} is not a readable checkpoint", "download it again"):
        read_model_state(path)
    with refused("does not exist"):
        read_model_state(tmp_path / f"nowhere{ending}")


def test_legacy_torch_file_cut_anywhere(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"pos_1LC": torch.zeros(4), "name": "x"}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for end in range(len(whole) - 1):
        path.write_bytes(whole[:end])
        with refused("not a readable checkpoint"):
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
    with refused("evil.pth contains more than tensors", "open", "safetensors"):
        read_model_state(path)
    assert not marker.exists()


def changed(model):
    state = copied(model.state_dict())
    state["head.bias"] += 1
    return state


@pytest.mark.parametrize(
    "content",
    [
        lambda m: {"model": copied(m.state_dict()), "ema": changed(m)},
        lambda m: {"state_dict": {**copied(m.state_dict(), "model."), **copied(changed(m), "ema.")}},
    ],
    ids=["nested", "flat"],
)
def test_a_file_with_two_models_is_refused(model, vae_file, tmp_path, content):
    torch.save(content(model), tmp_path / "two.pth")
    with refused("two.pth contains 2 different models", "model", "ema", "its own file"):
        load_pair(str(tmp_path / "two.pth"), vae_file)


def test_names_that_become_one_are_refused(model, vae_file, tmp_path):
    state = copied(model.state_dict())
    torch.save({**state, "_orig_mod.head.bias": state["head.bias"] + 1}, tmp_path / "two.pth")
    with refused("two.pth contains head.bias twice"):
        load_pair(str(tmp_path / "two.pth"), vae_file)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["head.weight", "blocks.1.attn.scale_mul_1H11", "style_encoder.1.running_var"])
def test_weights_that_are_not_finite_are_refused(model, vae_file, tmp_path, key, value):
    state = copied(model.state_dict())
    state[key].view(-1)[-1] = value
    with refused("bad.pth has values in", re.escape(key), "not finite", "earlier checkpoint"):
        load_pair(saved(state, tmp_path), vae_file)


def test_a_tokenizer_that_is_not_finite_is_refused(model, tmp_path):
    state = copied(model.vae.state_dict())
    state["decoder.conv_in.bias"][0] = float("nan")
    save_file(state, tmp_path / "vqvae.safetensors")
    with refused(r"vqvae\.safetensors has values in decoder\.conv_in\.bias", "not finite"):
        load_vae(str(tmp_path), model.arch)
