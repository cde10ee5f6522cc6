"""`launch/sft.py --workers 2`: the same training, which outlives the loss of a process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ray
import tiny
from patience import HANG
from prepared import prepare
from program import exit_code
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launch import sft
from launch.common.ray_cluster import join_cluster
from stylevar.checkpoint import load_pair

STEPS = 40


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    tiny.save(folder)
    prepare(folder, 60, size=tiny.SIZE)
    join_cluster()
    yield folder
    ray.shutdown()


def main(monkeypatch: pytest.MonkeyPatch, *argv: object) -> int:
    """The program's exit code."""
    return exit_code(monkeypatch, sft.main, *argv)


def flags(files: Path, runs: Path, *more: str) -> list[str]:
    given = ["--shards", str(files / "out"), "--vae", str(files / "vqvae.safetensors"), "--runs", str(runs), *tiny.SHAPE]
    given += ["--batch", "4", "--micro-batch", "1", "--warmup", "2", "--image-conditions", "1", "--log-every", "1"]
    given += ["--eval-every", "1000", "--checkpoint-every", "4", "--steps", str(STEPS), "--loader-workers", "0"]
    return [*given, *more]


def losses(run: Path, tag: str = "loss/train") -> dict[int, float]:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


def once(found: Callable[[], bool], action: Callable[[], None]) -> threading.Thread:
    """Do `action` in the background as soon as `found`."""

    def wait() -> None:
        until = time.monotonic() + HANG
        while not found() and time.monotonic() < until:
            time.sleep(0.02)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def kill_a_worker() -> None:
    workers = [p for p in psutil.process_iter(["cmdline"]) if "RayTrainWorker" in " ".join(p.info["cmdline"] or [])]
    # Only of the Ray that this process started.
    next(p for p in workers if os.getpid() in [parent.pid for parent in p.parents()]).kill()


@pytest.fixture(scope="module")
def alone(files, tmp_path_factory) -> Path:
    """The run of one process."""
    runs = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        assert main(patch, *flags(files, runs)) == 0
    return runs / "sft"


@pytest.mark.slow
def test_a_lost_process_is_replaced_and_the_run_ends_as_it_would_have(files, alone, tmp_path, monkeypatch):
    run = tmp_path / "sft"
    killer = once((run / "checkpoints" / "step_00000004").is_dir, kill_a_worker)
    assert main(monkeypatch, *flags(files, tmp_path, "--workers", "2")) == 0
    killer.join()
    found, expected = losses(run), losses(alone)
    assert list(found) == list(expected) == list(range(1, STEPS + 1))
    for step, loss in expected.items():
        assert found[step] == pytest.approx(loss, rel=2e-3)
    for split in ("val_pair", "val_style", "val_content"):
        assert losses(run, f"{split}/loss")[STEPS] == pytest.approx(losses(alone, f"{split}/loss")[STEPS], rel=2e-3)
    assert len(list((run / "tensorboard").glob("events*"))) == 2
    load_pair(str(run / "model"), str(files / "vqvae.safetensors"))


@pytest.mark.slow
def test_ctrl_c_stops_all_at_a_checkpoint_and_one_process_can_go_on(files, alone, tmp_path, monkeypatch, capsys):
    run = tmp_path / "sft"
    presser = once((run / "checkpoints" / "step_00000004").is_dir, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert main(monkeypatch, *flags(files, tmp_path, "--workers", "2")) == 130
    presser.join()
    assert f"continue with: python launch/sft.py --resume {run}" in capsys.readouterr().out
    assert 4 <= max(losses(run)) < STEPS
    assert main(monkeypatch, "--resume", str(run), "--workers", "1") == 0
    assert losses(run)[STEPS] == pytest.approx(losses(alone)[STEPS], rel=2e-3)


@pytest.mark.slow
def test_a_users_mistake_in_a_worker_is_one_line(files, tmp_path, monkeypatch, capsys):
    argv = flags(files, tmp_path, "--workers", "2", "--vae", str(files / "model.safetensors"))
    assert main(monkeypatch, *argv) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: ")


def test_workers_have_to_divide_the_batch(files, tmp_path, monkeypatch, capsys):
    assert main(monkeypatch, *flags(files, tmp_path, "--workers", "3")) == 2
    assert "--workers 3: must divide --batch 4" in capsys.readouterr().err
