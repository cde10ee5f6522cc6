"""Write a trained model as one file that any StyleVAR program loads, and share it on the Hugging Face hub.

python launch/export.py runs/demo --out stylevar.pth
python launch/export.py runs/demo/checkpoints/best --out release/ --dtype fp16 --with-vae
python launch/export.py runs/demo --out adapters/ --adapters-of data/demo/weights
python launch/export.py runs/demo --push OWNER/NAME --with-vae --private
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro
from annotated_types import Ge

from launch.common import cli
from launch.common.loading import loading
from stylevar.bounds import check_bounds
from stylevar.config import Alpha
from stylevar.errors import UserError
from stylevar.source import Take, locate
from stylevar.text import printable


@dataclass(frozen=True)
class ReleaseConfig:
    source: tyro.conf.Positional[str]
    """A run's folder, one of its checkpoints or merges, any other checkpoint, or a hub id owner/name[:file]."""
    out: Path | None = None
    """Output, with a config.json beside it: NAME.pth (the released format), NAME.safetensors, or a folder."""
    take: Take = "final"
    """Which model of a run to export: the finished one, or the best or latest checkpoint."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of the stored matrices; everything else stays fp32."""
    base: str | None = None
    """Base model of a checkpoint's adapters (the run's --init or a merge), if it has moved since the run."""
    vae: str | None = None
    """The VQ-VAE: a file, a folder, or a hub id owner/name[:file]; by default the run's."""
    with_vae: bool = False
    """Copy the VQ-VAE too, as vqvae.safetensors."""
    adapters_of: str | None = None
    """Write PEFT adapters of this model instead of the whole model: only what GRPO has changed. Takes what --init takes."""
    adapter_rank: Annotated[int, Ge(1)] = 32
    """Rank of these adapters; a lower one makes a smaller file that keeps less of the change."""
    alphas: tuple[Alpha, ...] | None = None
    """Style weight of each scale; replaces the weights saved with the model."""
    revision: str | None = None
    """Hub revision (branch, tag or commit) of a source on the hub."""
    overwrite: bool = False
    """Replace files that exist."""
    push: str | None = None
    """Upload the model with a generated card to this repository, owner/name; it is created if missing. The token comes
    from HF_TOKEN or from `hf auth login`."""
    branch: str | None = None
    """Branch to upload to instead of main; it is created if missing."""
    private: bool = False
    """Create the repository as private."""
    message: str | None = None
    """Commit message of the upload."""
    licence: str = "apache-2.0"
    """The model's licence in its card, as the hub spells it."""
    eval: Path | None = None
    """Summary of an evaluation (JSON) to show in the card."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.out is None and self.push is None:
            raise UserError("nothing to do: give --out FILE, --push OWNER/NAME, or both")
        if self.push is None and (self.private or self.branch or self.message or self.eval):
            raise UserError("--private, --branch, --message and --eval need --push OWNER/NAME")
        if self.adapters_of is not None and (self.push is not None or self.with_vae):
            given = "--with-vae" if self.push is None else "--push"
            raise UserError(f"--adapters-of writes no whole model: leave out {given}")


def main(config: ReleaseConfig) -> None:
    if config.adapters_of is None:
        write_whole(config)
    else:
        write_adapters(config, config.adapters_of)


def write_adapters(config: ReleaseConfig, base_source: str) -> None:
    """Write what the source's training changed in the model `base_source`."""
    with loading():
        from launch.release.adapters import check_folder, difference, read_base, write
        from launch.release.files import DTYPES
        from stylevar.checkpoint import read_model

    assert config.out is not None  # there is no --push
    check_folder(config.out, config.overwrite)
    release = read_model(locate(config.source, config.revision, config.base, config.take), config.vae, config.alphas)
    base = read_base(base_source, config.revision, config.vae)
    found = difference(release, base, config.adapter_rank, DTYPES[config.dtype])
    write(found, base.files, release, config.out)
    parameters = sum(v.numel() for v in found.state.values())
    print(
        f"{printable(config.out)}: PEFT adapters of {printable(base_source)}, rank {found.rank}, {parameters:,} values; "
        f"they keep {found.kept:.2%} of the change (squared norm)"
    )


def write_whole(config: ReleaseConfig) -> None:
    """Write or push the whole model."""
    with loading():
        from launch.release.files import check_config, check_target, stored_state, target_of, write
        from stylevar.checkpoint import read_model

    target = None if config.out is None else target_of(config.out, config.with_vae)
    if target is not None:
        check_target(target, config.overwrite)
    if config.push is not None:
        from launch.release.hub import check_access, read_summary

        check_access(config.push)
        summary = None if config.eval is None else read_summary(config.eval)
    files = locate(config.source, config.revision, config.base, config.take)
    release = read_model(files, config.vae, config.alphas)
    vae = files.vae_file(config.vae) if config.with_vae else None
    state = stored_state(release, config.dtype)
    if target is not None:
        check_config(target, release.arch, config.overwrite)
        write(release, state, target, vae)
        how = "adapters baked in" if files.base else "no adapters"
        parameters = sum(v.numel() for v in state.values())
        print(f"{printable(target.weights)}: {len(state)} tensors, {parameters:,} values, {how}; read back, all equal")
        print(f"{printable(target.config)}: the architecture and the style weight of each scale; keep it beside the weights")
    if config.push is not None:
        from launch.release.hub import Upload, push

        with tempfile.TemporaryDirectory(prefix="stylevar-") as folder:
            staged = target_of(Path(folder), config.with_vae)
            write(release, state, staged, vae)
            upload = Upload(config.push, config.branch, config.private, config.message, config.licence)
            print(push(Path(folder), release, upload, summary))


if __name__ == "__main__":
    cli.run(main, ReleaseConfig)
