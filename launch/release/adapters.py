"""A trained model as PEFT adapters of the model it started from: a small file with only what training changed."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from stylevar.adapters import TARGETS, adapted_layers
from stylevar.atomic import file_aside
from stylevar.checkpoint import ModelWeights, read_model
from stylevar.errors import UserError
from stylevar.source import CONFIG_FILE, MODEL_FILE, PEFT_CONFIG, PEFT_WEIGHTS, ModelFiles, locate
from stylevar.text import check_path
from stylevar.weight_files import State

FILES = (PEFT_WEIGHTS, PEFT_CONFIG, CONFIG_FILE)
_PREFIX = "base_model.model."  # of PEFT's names


@dataclass(frozen=True)
class Difference:
    """Adapters of rank `rank` with scale 1, under PEFT's names.

    kept: the share of the change that they keep, in squared norm over all layers; 1 if nothing changed.
    """

    state: State
    rank: int
    kept: float


def read_base(source: str, revision: str | None, vae: str | None) -> ModelWeights:
    """The model that adapters are written for. UserError if it has adapters itself, which PEFT cannot name as a base."""
    files = locate(source, revision)
    if files.base is not None:
        raise UserError(f"--adapters-of {source}: it is made of adapters itself; give a whole model")
    return read_model(files, vae)


def difference(release: ModelWeights, base: ModelWeights, rank: int, dtype: torch.dtype) -> Difference:
    """The adapters of `base` that come closest to `release`, by the singular values of each layer's change.

    They are exact, up to rounding, where the change has at most this rank, as in a GRPO run without merges.

    Raises:
        UserError: the models differ in size, or outside the layers that GRPO adapts.
    """
    layers = adapted_layers(release.state)
    if {k: v.shape for k, v in release.state.items()} != {k: v.shape for k, v in base.state.items()}:
        raise UserError(f"--adapters-of {base.files.name}: it has another size than {release.files.name}; give its base")
    for name, value in release.state.items():
        if name.removesuffix(".weight") not in layers and not torch.equal(value, base.state[name]):
            raise UserError(
                f"--adapters-of {base.files.name}: {release.files.name} differs from it in {name}, which adapters do not "
                "change; give the model that its GRPO run started from, or export the whole model"
            )
    rank = min(rank, *(min(release.state[f"{layer}.weight"].shape) for layer in layers))  # no change has a higher one
    state: State = {}
    total = kept = 0.0
    for layer in tqdm(layers, desc="adapters", unit="layer", leave=False):
        change = release.state[f"{layer}.weight"] - base.state[f"{layer}.weight"]
        left, values, right = torch.linalg.svd(change, full_matrices=False)
        left, values, right = left[:, :rank], values[:rank], right[:rank]
        root = values.sqrt()
        for name, factor in (("lora_A", root[:, None] * right), ("lora_B", left * root)):
            state[f"{_PREFIX}{layer}.{name}.weight"] = factor.to(dtype).contiguous()
        total += float(change.square().sum())
        kept += float(values.square().sum())
    return Difference(state, rank, kept / total if total else 1.0)


def check_folder(out: Path, overwrite: bool) -> None:
    """UserError unless adapters can be written to the folder `out`."""
    check_path(out, "--out", utf8=True)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file, and adapters are a folder: give another name")
    if (out / MODEL_FILE).exists():
        raise UserError(f"--out {out} holds a whole model, which would hide the adapters: choose another folder")
    existing = [out / name for name in FILES if (out / name).exists()]
    if existing and not overwrite:
        raise UserError(f"{existing[0]} exists: choose another --out, or replace what is there with --overwrite")


def write(difference: Difference, base: ModelFiles, release: ModelWeights, out: Path) -> None:
    """Write PEFT's files and the model's config into the folder `out`, each file whole or not at all.

    Raises:
        UserError: the folder cannot be written.
        RuntimeError: the weights were read back with other values.
    """
    # A local base is named by its path from the folder, so that both can be moved together.
    local = Path(base.name).exists()
    settings = LoraConfig(
        base_model_name_or_path=os.path.relpath(base.weights.resolve(), out.resolve()) if local else base.name,
        revision=None if local else base.revision,
        r=difference.rank,
        lora_alpha=difference.rank,  # scale 1
        target_modules=TARGETS,
        lora_dropout=0.0,
        bias="none",
        inference_mode=True,
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        with file_aside(out / PEFT_WEIGHTS) as aside:
            save_file(difference.state, str(aside))
            found = load_file(aside)
            if lost := [name for name, value in difference.state.items() if not torch.equal(found[name], value)]:
                raise RuntimeError(f"{lost[0]} was read back from {out} with other values: do not trust this disk")
        with tempfile.TemporaryDirectory(prefix="stylevar-") as folder, file_aside(out / PEFT_CONFIG) as aside:
            settings.save_pretrained(folder)
            shutil.copyfile(Path(folder) / PEFT_CONFIG, aside)
        with file_aside(out / CONFIG_FILE) as aside:
            release.arch.save(aside)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror or error}): choose another folder") from error
