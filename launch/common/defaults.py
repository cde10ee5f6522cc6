"""Paths of the embedded demo set and its small trained models, wherever the packages are installed."""

from __future__ import annotations

from pathlib import Path

import data

DEMO_DATA = Path(data.__path__[0]).resolve() / "demo"
DEMO_MODEL = DEMO_DATA / "weights" / "model.safetensors"
DEMO_TUNED = DEMO_DATA / "weights" / "grpo"
"""The demo's model after a longer run of GRPO, as adapters of `DEMO_MODEL`."""
DEMO_VAE = DEMO_DATA / "weights" / "vqvae.safetensors"
DEMO_ADAIN = DEMO_DATA / "weights" / "adain_lite.safetensors"
