"""One small model and its tokenizer's file, shared by the tests that only read them."""

from __future__ import annotations

import pytest
import small_model

from stylevar.checkpoint import save_vae


@pytest.fixture(scope="module")
def model():
    return small_model.build()


@pytest.fixture(scope="module")
def vae_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("vae") / "vqvae.safetensors"
    save_vae(model.vae, path)
    return str(path)
