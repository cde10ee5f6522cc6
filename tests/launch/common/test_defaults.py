"""The demo's committed models: they belong together, load, and stay small."""

from __future__ import annotations

import torch

from launch.common.defaults import DEMO_MODEL, DEMO_TUNED, DEMO_VAE
from launch.stylise.config import ModelSource
from stylevar.adapters import adapted_layers
from stylevar.checkpoint import read_model
from stylevar.source import locate

MEGABYTES = 45
"""The limit of all weights together, so that a clone stays quick."""


def test_new_pictures_are_stylised_by_the_tuned_model():
    files = locate(ModelSource().init)
    assert files.weights == DEMO_TUNED
    assert files.base is not None
    assert files.base.weights.samefile(DEMO_MODEL)
    assert files.vae_file().samefile(DEMO_VAE)


def test_the_tuned_model_differs_from_the_first_in_every_adapted_layer_and_nowhere_else():
    tuned, first = read_model(locate(str(DEMO_TUNED))), read_model(locate(str(DEMO_MODEL)))
    changed = {name for name, value in tuned.state.items() if not torch.equal(value, first.state[name])}
    assert changed == {f"{layer}.weight" for layer in adapted_layers(first.state)}


def test_the_weights_stay_small():
    total = sum(file.stat().st_size for file in DEMO_MODEL.parent.rglob("*") if file.is_file())
    assert total <= MEGABYTES * 1e6
