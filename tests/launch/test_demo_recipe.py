"""`data/demo/train.sh`: from a packed corpus to weights with metrics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from launch.common.defaults import DEMO_DATA

RECIPE = DEMO_DATA / "train.sh"
SMALL = {
    "VAE_MINUTES": "0.05",
    "SFT_MINUTES": "0.05",
    "VAE_FLAGS": "--batch 4 --precision fp32 --no-compile --threads 1",
    "SFT_FLAGS": "--batch 4 --micro-batch 4 --no-compile --depth 1 --threads 1 --image-conditions 1 --val-samples 4",
    "EVAL_FLAGS": "--sweep-temperature 1 0.5 --sweep-conditions 2 --limit 2",
}


@pytest.mark.slow
def test_a_packed_corpus_becomes_weights_with_metrics(tmp_path: Path) -> None:
    packed, out = tmp_path / "corpus.tar.xz", tmp_path / "out"
    with tarfile.open(packed, "w:xz") as archive:
        archive.add(DEMO_DATA / "train-00003.tar", "train-00003.tar")
    subprocess.run([RECIPE, packed, out], check=True, env={**os.environ, **SMALL, "PYTHON": sys.executable})
    assert {path.name for path in (out / "weights").iterdir()} == {"vqvae.safetensors", "model.safetensors", "config.json"}
    assert json.loads((out / "vqvae" / "metrics.json").read_text())["psnr_stylised_db"] > 0
    assert (out / "eval" / "summary.json").is_file()


def test_missing_arguments_are_one_line() -> None:
    failed = subprocess.run([RECIPE], capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.splitlines() == [f"usage: {RECIPE} CORPUS OUT"]
