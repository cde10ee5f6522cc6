"""Which Ray a program joins."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Short, since Ray keeps sockets there."""
    folder = Path(tempfile.mkdtemp(prefix="sv-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def test_a_dead_cluster_that_was_started_here_is_not_waited_for(ray_folder):
    (ray_folder / "ray").mkdir()
    (ray_folder / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    code = "from launch.cluster.join import join_cluster; print('joined', join_cluster()['CPU'])"
    environment = {**os.environ, "RAY_TMPDIR": str(ray_folder)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=90, check=False
    )
    assert "joined" in done.stdout, done.stderr
