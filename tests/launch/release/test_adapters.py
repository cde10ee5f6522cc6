"""`launch/export.py --adapters-of`: what GRPO has changed, as adapters that PEFT and every program here load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from checkpoint_files import assert_same, refused
from peft import PeftModel
from safetensors.torch import load_file, save_file

from launch import export
from launch.export import ReleaseConfig
from launch.release.adapters import difference
from stylevar.adapters import adapted_layers
from stylevar.checkpoint import ModelWeights, load_pair, read_model
from stylevar.errors import UserError
from stylevar.source import locate
from stylevar.weight_files import State

RANK = 3


def changed(state: State, rank: int) -> State:
    """`state` with a change of this rank in every layer that adapters can change."""
    generator = torch.Generator().manual_seed(0)
    layers = adapted_layers(state)
    out = {name: value.clone() for name, value in state.items()}
    for layer in layers:
        weight = out[f"{layer}.weight"]
        rows, columns = weight.shape
        weight += 0.05 * torch.randn(rows, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)
    assert layers
    return out


@pytest.fixture
def models(tmp_path) -> Path:
    """A folder with the model `sft`, and `tuned`, which differs from it by a change of rank 3 in each adapted layer."""
    tiny.save(tmp_path / "sft")
    shutil.copytree(tmp_path / "sft", tmp_path / "tuned")
    save_file(changed(load_file(tmp_path / "sft" / "model.safetensors"), RANK), tmp_path / "tuned" / "model.safetensors")
    return tmp_path


def export_adapters(models: Path, source: str = "tuned", of: str = "sft", out: str = "adapters", **flags) -> Path:
    export.main(ReleaseConfig(str(models / source), models / out, adapters_of=str(models / of), **flags))
    return models / out


def loaded(source: Path) -> State:
    return load_pair(str(source))[1].state_dict()


def assert_close(state: State, expected: State) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, atol=2e-6, rtol=1e-5, msg=name)


def test_a_change_of_low_rank_is_kept_in_full(models, capsys):
    folder = export_adapters(models, adapter_rank=RANK)
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "config.json"}
    assert "they keep 100.00% of the change" in capsys.readouterr().out
    assert_close(loaded(folder), loaded(models / "tuned"))


def test_peft_loads_them(models):
    folder = export_adapters(models, adapter_rank=RANK)
    model = PeftModel.from_pretrained(load_pair(str(models / "sft"))[1], str(folder)).merge_and_unload()
    assert_close(model.state_dict(), loaded(models / "tuned"))


def test_the_folder_can_be_moved_with_its_base(models):
    export_adapters(models, out="sft/adapters", adapter_rank=RANK)
    expected = loaded(models / "sft" / "adapters")
    (models / "sft").rename(models / "moved")
    assert_same(loaded(models / "moved" / "adapters"), expected)


def test_a_lower_rank_keeps_the_largest_singular_values(models):
    """By Eckart and Young, no other adapters of that rank come closer."""
    base, tuned = (read_model(locate(str(models / name))) for name in ("sft", "tuned"))
    found = difference(tuned, base, 2, torch.float32)
    layers = adapted_layers(tuned.state)
    squares = [
        torch.linalg.svdvals(tuned.state[f"{layer}.weight"] - base.state[f"{layer}.weight"]).square() for layer in layers
    ]
    assert found.kept == pytest.approx(float(sum(s[:2].sum() for s in squares) / sum(s.sum() for s in squares)), rel=1e-4)
    for layer, square in zip(layers, squares, strict=True):
        a, b = (found.state[f"base_model.model.{layer}.lora_{side}.weight"] for side in "AB")
        left = tuned.state[f"{layer}.weight"] - base.state[f"{layer}.weight"] - b @ a
        assert float(left.square().sum()) == pytest.approx(float(square[2:].sum()), rel=1e-3)


def test_a_rank_beyond_the_models_width_keeps_everything(models):
    assert_close(loaded(export_adapters(models, adapter_rank=100_000)), loaded(models / "tuned"))


def test_a_whole_model_and_adapters_do_not_share_a_folder(models):
    """Which of the two is meant could not be told."""
    expected = loaded(models / "sft")
    with refused("holds a whole model", "choose another folder"):
        export_adapters(models, out="sft", overwrite=True)
    shutil.copy(export_adapters(models) / "adapter_config.json", models / "sft")
    assert_same(loaded(models / "sft"), expected)


def test_nothing_changed(models, capsys):
    assert_same(loaded(export_adapters(models, source="sft")), loaded(models / "sft"))
    assert "100.00%" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision(models, dtype):
    folder = export_adapters(models, dtype=dtype)
    assert all(v.itemsize == 2 for v in load_file(folder / "adapter_model.safetensors").values())
    expected = loaded(models / "tuned")
    for name, value in loaded(folder).items():
        torch.testing.assert_close(value, expected[name], atol=5e-3, rtol=0)


def test_a_model_that_differs_elsewhere_is_refused(models):
    tiny.save(models / "other", seed=5)
    with refused("--adapters-of .*other", "differs from it in", "export the whole model"):
        export_adapters(models, of="other")
    assert not (models / "adapters").exists()


def test_a_model_of_another_size_is_refused(models):
    tuned, base = (read_model(locate(str(models / name))) for name in ("tuned", "sft"))
    larger = {**base.state, "head.bias": torch.zeros(base.state["head.bias"].numel() + 1)}
    with refused("another size", "give its base"):
        difference(tuned, ModelWeights(base.files, larger, base.arch), 2, torch.float32)


def test_adapters_are_no_base(models):
    export_adapters(models)
    with refused("--adapters-of .*adapters", "give a whole model"):
        export_adapters(models, of="adapters", out="again")


def test_nothing_is_replaced_unasked(models):
    folder = export_adapters(models, adapter_rank=1)
    (folder / "notes.txt").write_text("mine")
    before = loaded(folder)
    with refused("adapter_model.safetensors exists", "--overwrite"):
        export_adapters(models, adapter_rank=RANK)
    assert_same(loaded(folder), before)
    export_adapters(models, adapter_rank=RANK, overwrite=True)
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == RANK
    assert (folder / "notes.txt").read_text() == "mine"


def test_outputs_that_are_no_folder(models):
    with refused("is a file", "give another name"):
        export_adapters(models, out="sft/config.json")
    with refused("cannot be written", "choose another folder"):
        export_adapters(models, out="sft/config.json/adapters")


@pytest.mark.parametrize("flags", [{"with_vae": True}, {"push": "owner/name"}])
def test_flags_of_whole_models_are_refused(flags):
    with pytest.raises(UserError, match="--adapters-of writes no whole model: leave out --(with-vae|push)"):
        ReleaseConfig("run", Path("out"), adapters_of="sft", **flags)
