"""The files of a released model: where they go, what they hold, and how they are written."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from stylevar.atomic import file_aside
from stylevar.build import build_shapes
from stylevar.checkpoint import (
    CONFIG_FILE,
    MODEL_FILE,
    VAE_FILE,
    ModelWeights,
    compact,
    fitted,
    read_model_state,
    read_vae_state,
    save_torch,
)
from stylevar.config import ModelConfig
from stylevar.errors import UserError
from stylevar.text import check_path
from stylevar.weight_files import State

TORCH_ENDINGS = (".pth", ".pt")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Target:
    """The files to write; `vae` is None if it is not to be written."""

    weights: Path
    config: Path
    vae: Path | None

    @property
    def files(self) -> list[Path]:
        return [path for path in (self.weights, self.config, self.vae) if path is not None]


def target_of(out: Path, with_vae: bool) -> Target:
    """The files that `--out` stands for. Raises UserError for an unknown ending."""
    check_path(out, "--out", utf8=out.suffix not in TORCH_ENDINGS)
    if out.is_dir() or not out.suffix or out.suffix[1:].isdigit():  # release-1.0 is a folder
        weights = out / MODEL_FILE
    elif out.suffix in (*TORCH_ENDINGS, ".safetensors"):
        weights = out
    else:
        raise UserError(f"--out {out}: give a name that ends in .pth or .safetensors, or a folder")
    return Target(weights, weights.parent / CONFIG_FILE, weights.parent / VAE_FILE if with_vae else None)


def check_target(target: Target, overwrite: bool) -> None:
    """Raise UserError if a file would be replaced without `overwrite`; for the config see `check_config`."""
    existing = [path for path in target.files if path != target.config and path.exists()]
    if existing and not overwrite:
        raise UserError(f"{existing[0]} exists: choose another --out, or replace what is there with --overwrite")


def check_config(target: Target, arch: ModelConfig, overwrite: bool) -> None:
    """Raise UserError if another model's config would be replaced without `overwrite`. Equal models may share one."""
    if not overwrite and target.config.exists() and ModelConfig.load(target.config) != arch:
        raise UserError(
            f"{target.config} exists, and has another architecture or other alphas: choose another --out, or replace "
            f"what is there with --overwrite"
        )


def stored_state(release: ModelWeights, dtype: str) -> State:
    """The weights as they are written. Raises UserError for values that the type cannot hold."""
    stored = compact(release.state, DTYPES[dtype])
    lost = [
        k for k, v in stored.items() if v.dtype != release.state[k].dtype and (v.isinf() != release.state[k].isinf()).any()
    ]
    if lost:
        raise UserError(f"--dtype {dtype}: {lost[0]} holds values beyond its range; give --dtype bf16 or fp32")
    return stored


def write(release: ModelWeights, state: State, target: Target, vae: Path | None = None) -> None:
    """Write everything, with the VQ-VAE in the file `vae`, each file whole or not at all; see `verify`.

    Raises UserError if the folder cannot be written or has no room.
    """
    try:
        target.weights.parent.mkdir(parents=True, exist_ok=True)
        vae_state = None if vae is None else compact(read_vae_state(vae))
        _check_room(target.weights.parent, [*state.values(), *(vae_state or {}).values()])
        with file_aside(target.weights) as aside:
            if aside.suffix in TORCH_ENDINGS:
                save_torch({"model": state}, aside)
            else:
                save_file(state, str(aside))
            verify(aside, state, release)
        with file_aside(target.config) as aside:
            release.arch.save(aside)
        if target.vae is not None and vae_state is not None:
            with file_aside(target.vae) as aside:
                save_file(vae_state, str(aside))
    except OSError as error:
        raise UserError(
            f"{target.weights.parent} cannot be written ({error.strerror or error}): choose another --out"
        ) from error


def verify(path: Path, state: State, release: ModelWeights) -> None:
    """Read the file as any program would. Raises RuntimeError unless it holds every key of the model, with equal values."""
    found = read_model_state(path)
    fitted(build_shapes(release.arch)[1], found, str(path))
    for name, value in state.items():
        if found[name].dtype != value.dtype or not torch.equal(found[name], value):
            raise RuntimeError(
                f"{name} was read back from {path} with other values than were written: do not trust this disk"
            )


def _check_room(folder: Path, tensors: list[torch.Tensor]) -> None:
    needed = sum(tensor.numel() * tensor.itemsize for tensor in tensors)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed: make room or choose another --out"
        )
