"""Load the trained model that a program's flags choose."""

from __future__ import annotations

from launch.common.device import choose_device
from launch.stylise.config import ModelSource
from stylevar.pipeline import StyleVARPipeline
from stylevar.tf32 import allow_tf32


def load_pipeline(source: ModelSource) -> StyleVARPipeline:
    """The model, ready to stylise. UserError if its weights are missing or do not match."""
    device = choose_device(source.device)
    allow_tf32(source.tf32)
    pipeline = StyleVARPipeline.from_pretrained(source.init, source.vae, source.revision, device, source.precision)
    if source.compile:
        pipeline.model.compile_blocks()
    return pipeline
