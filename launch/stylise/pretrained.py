"""Which model a program stylises with, and how it is held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from launch.common.defaults import DEMO_MODEL
from launch.common.device import choose_device
from stylevar.pipeline import StyleVARPipeline
from stylevar.policy import Precision, allow_tf32


@dataclass(frozen=True)
class ModelSource:
    """A trained model."""

    init: str = str(DEMO_MODEL)
    """StyleVAR: a file of weights, a model's folder, a run, one of its checkpoints or merges, or a hub id
    owner/name[:file]; by default the small demo model."""
    vae: str | None = None
    """Its VQ-VAE: a file, a folder, or a hub id owner/name[:file]; by default vqvae.safetensors beside the model,
    or that of its run."""
    revision: str | None = None
    """Branch, tag or commit of both on the hub."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto uses a GPU if there is one."""
    precision: Precision = "fp32"
    """bf16: blocks multiply and attend in bfloat16, and a GPU decodes in it."""
    tf32: bool = False
    """Let a GPU round the inputs of fp32 products and convolutions to TF32: two to three times the speed."""
    compile: bool = False
    """Compile the model first: minutes, worth it for many pictures."""

    def load(self) -> StyleVARPipeline:
        """The model, ready to stylise. UserError if its weights are missing or do not fit."""
        device = choose_device(self.device)
        allow_tf32(self.tf32)
        pipeline = StyleVARPipeline.from_pretrained(self.init, self.vae, self.revision, device, self.precision)
        if self.compile:
            pipeline.model.compile_blocks()
        return pipeline
