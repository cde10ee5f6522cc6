"""Write a trained model as one file that any StyleVAR program loads, and share it on the Hugging Face hub.

python launch/export.py runs/demo --out stylevar.pth
python launch/export.py runs/demo/checkpoints/best --out release/ --dtype fp16 --with-vae
python launch/export.py runs/demo --push OWNER/NAME --with-vae --private
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import tyro
from safetensors.torch import save_file

from launch.common import cli
from launch.run.model import Release, Take, load_release
from stylevar.atomic import file_aside
from stylevar.build import build_from_config
from stylevar.checkpoint import (
    CONFIG_FILE,
    MODEL_FILE,
    VAE_FILE,
    State,
    compact,
    fitted,
    read_model_state,
    read_vae_state,
    save_torch,
)
from stylevar.config import ModelConfig
from stylevar.errors import UserError
from stylevar.hub import fetch
from stylevar.text import check_path, printable

TORCH_ENDINGS = (".pth", ".pt")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class ReleaseConfig:
    source: tyro.conf.Positional[str]
    """A run's folder, one of its checkpoints or merges, any other checkpoint, or a hub id owner/name[:file]."""
    out: Path | None = None
    """What to write, with a config.json beside it: NAME.pth (the released format), NAME.safetensors, or a folder."""
    take: Take = "final"
    """Of a run: its finished model, or its best or latest checkpoint."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """How matrices are stored; all else stays fp32."""
    base: str | None = None
    """The model that a checkpoint's adapters stand on, if it is no longer where the run had it: its --init or a merge."""
    vae: str | None = None
    """The VQ-VAE: a file, a folder, or a hub id owner/name[:file]; by default that of the run."""
    with_vae: bool = False
    """Copy the VQ-VAE too, as vqvae.safetensors."""
    alphas: tuple[float, ...] | None = None
    """Style weight of each scale, in place of those saved with the model."""
    revision: str | None = None
    """Hub revision (branch, tag or commit) of a source on the hub."""
    overwrite: bool = False
    """Replace files that exist."""
    push: str | None = None
    """Upload the model with a generated card to this repository, owner/name, which is created if there is none. The token
    comes from HF_TOKEN or from `hf auth login`."""
    branch: str | None = None
    """Branch to upload to, in place of main; it is created if there is none."""
    private: bool = False
    """Create the repository as a private one."""
    message: str | None = None
    """Message of the upload's commit."""
    licence: str = "apache-2.0"
    """The model's licence in its card, as the hub spells it."""
    eval: Path | None = None
    """Summary of an evaluation (JSON), for the card."""

    def __post_init__(self) -> None:
        if self.out is None and self.push is None:
            raise UserError("nothing to do: give --out FILE, --push OWNER/NAME, or both")
        if self.push is None and (self.private or self.branch or self.message or self.eval):
            raise UserError("--private, --branch, --message and --eval belong to --push OWNER/NAME, which is missing")


@dataclass(frozen=True)
class Target:
    """The files to write; `vae` is None if it is not wanted."""

    weights: Path
    config: Path
    vae: Path | None

    @property
    def files(self) -> list[Path]:
        return [path for path in (self.weights, self.config, self.vae) if path is not None]


def target_of(out: Path, with_vae: bool) -> Target:
    """The files behind `--out`. UserError for an ending that says no format."""
    check_path(out, "--out", utf8=out.suffix not in TORCH_ENDINGS)
    if out.is_dir() or not out.suffix or out.suffix[1:].isdigit():  # release-1.0 is a folder
        weights = out / MODEL_FILE
    elif out.suffix in (*TORCH_ENDINGS, ".safetensors"):
        weights = out
    else:
        raise UserError(f"--out {out}: give a name that ends in .pth or .safetensors, or a folder")
    return Target(weights, weights.parent / CONFIG_FILE, weights.parent / VAE_FILE if with_vae else None)


def check_target(target: Target, overwrite: bool) -> None:
    """UserError if something would be replaced unasked; for the config see `check_config`."""
    existing = [path for path in target.files if path != target.config and path.exists()]
    if existing and not overwrite:
        raise UserError(f"{existing[0]} exists: choose another --out, or replace what is there with --overwrite")


def check_config(target: Target, arch: ModelConfig, overwrite: bool) -> None:
    """UserError if the config of another model would be replaced unasked; models that are alike may share one."""
    if not overwrite and target.config.exists() and ModelConfig.load(target.config) != arch:
        raise UserError(
            f"{target.config} exists, and tells of another architecture or other alphas: choose another --out, or replace "
            f"what is there with --overwrite"
        )


def stored_state(release: Release, dtype: str) -> State:
    """The weights as they are written. UserError for values that the type cannot hold."""
    stored = compact(release.state, DTYPES[dtype])
    lost = [
        k for k, v in stored.items() if v.dtype != release.state[k].dtype and (v.isinf() != release.state[k].isinf()).any()
    ]
    if lost:
        raise UserError(f"--dtype {dtype}: {lost[0]} holds values beyond its range; give --dtype bf16 or fp32")
    return stored


def write(release: Release, state: State, target: Target) -> None:
    """Write everything, each file whole or not at all; what was written is read back before it takes its place.

    UserError for a place that cannot be written or has no room.
    """
    try:
        target.weights.parent.mkdir(parents=True, exist_ok=True)
        vae = None if target.vae is None else compact(read_vae_state(_vae_file(release)))
        _check_room(target.weights.parent, [*state.values(), *(vae or {}).values()])
        with file_aside(target.weights) as aside:
            if aside.suffix in TORCH_ENDINGS:
                save_torch({"model": state}, aside)
            else:
                save_file(state, str(aside))
            verify(aside, state, release)
        with file_aside(target.config) as aside:
            release.arch.save(aside)
        if target.vae is not None and vae is not None:
            with file_aside(target.vae) as aside:
                save_file(vae, str(aside))
    except OSError as error:
        raise UserError(
            f"{target.weights.parent} cannot be written ({error.strerror or error}): choose another --out"
        ) from error


def verify(path: Path, state: State, release: Release) -> None:
    """Read the file as any program would: every key of the model, every value equal. RuntimeError otherwise."""
    found = read_model_state(path)
    fitted(build_from_config(release.arch, "meta")[1], found, str(path))
    for name, value in state.items():
        if found[name].dtype != value.dtype or not torch.equal(found[name], value):
            raise RuntimeError(f"{name} did not come back from {path} as it was written: the disk is not to be trusted")


def _check_room(folder: Path, tensors: list[torch.Tensor]) -> None:
    needed = sum(tensor.numel() * tensor.itemsize for tensor in tensors)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB of room for {needed / 1e9:.1f} GB: make room or choose another --out"
        )


def _vae_file(release: Release) -> Path:
    if release.vae is None:
        raise UserError("--with-vae: it is not known which VQ-VAE belongs to this model; give --vae")
    return fetch(release.vae, VAE_FILE, release.revision)


def main(config: ReleaseConfig) -> None:
    target = None if config.out is None else target_of(config.out, config.with_vae)
    if target is not None:
        check_target(target, config.overwrite)
    if config.push is not None:
        from launch.release.hub import check_access, read_summary

        check_access(config.push)
        summary = None if config.eval is None else read_summary(config.eval)
    release = load_release(config.source, config.take, config.base, config.vae, config.alphas, config.revision)
    state = stored_state(release, config.dtype)
    if target is not None:
        check_config(target, release.arch, config.overwrite)
        write(release, state, target)
        how = "adapters baked in" if release.baked else "no adapters"
        parameters = sum(v.numel() for v in state.values())
        print(f"{printable(target.weights)}: {len(state)} tensors, {parameters:,} values, {how}; read back, all equal")
        print(f"{printable(target.config)}: the architecture and the style weight of each scale; keep it beside the weights")
    if config.push is not None:
        from launch.release.hub import Upload, push

        with tempfile.TemporaryDirectory(prefix="stylevar-") as folder:
            staged = target_of(Path(folder), config.with_vae)
            write(release, state, staged)
            upload = Upload(config.push, config.branch, config.private, config.message, config.licence)
            print(push(Path(folder), release, upload, summary))


if __name__ == "__main__":
    cli.run(main, ReleaseConfig)
