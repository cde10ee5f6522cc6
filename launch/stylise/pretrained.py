"""The flags that choose a trained model, its device and its precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from launch.common.defaults import DEMO_MODEL
from launch.common.device import choose_device
from stylevar.config import Precision
from stylevar.pipeline import StyleVARPipeline
from stylevar.policy import allow_tf32


@dataclass(frozen=True)
class ModelSource:
    """A trained model."""

    init: str = str(DEMO_MODEL)
    """StyleVAR: a weights file, a model folder, a run, one of its checkpoints or merges, or a hub id owner/name[:file]; by
    default the small demo model."""
    vae: str | None = None
    """Its VQ-VAE: a file, a folder, or a hub id owner/name[:file]; by default vqvae.safetensors beside the model, or the
    VQ-VAE of its run."""
    revision: str | None = None
    """Branch, tag or commit of the model and the VQ-VAE on the hub."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto uses a GPU if there is one."""
    precision: Precision = "fp32"
    """bf16: matrix products and attention run in bfloat16, on a GPU decoding too."""
    tf32: bool = False
    """Let a GPU round the inputs of fp32 products and convolutions to TF32: two to three times the speed."""
    compile: bool = False
    """Compile the model first. This takes minutes and pays off for many pictures."""

    def load(self) -> StyleVARPipeline:
        """The model, ready to stylise. UserError if its weights are missing or do not match."""
        device = choose_device(self.device)
        allow_tf32(self.tf32)
        pipeline = StyleVARPipeline.from_pretrained(self.init, self.vae, self.revision, device, self.precision)
        if self.compile:
            pipeline.model.compile_blocks()
        return pipeline
