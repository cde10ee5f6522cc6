"""Programs as people end them: the terminal closes or Ctrl-C reaches the whole process group, and the reader goes first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import patience
import psutil
import pytest
import tiny
import yaml
from grpo_files import config, write_inputs

from launch.benchmarks.generated import write_omnistyle
from launch.configs.grpo import MonitorConfig
from launch.configs.io import to_plain

ROOT = Path(__file__).parents[2]
RARELY = MonitorConfig(eval_every=10**6, eval_conditions=2, eval_group=2, checkpoint_every=10**6, image_conditions=2)


def start(program: str, *argv: object) -> subprocess.Popen:
    """A program of ours in a process group of its own, as a shell starts it, with one pipe for all of its output."""
    command = [sys.executable, "-u", str(ROOT / "launch" / program), *map(str, argv)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def read_until(process: subprocess.Popen, *words: bytes) -> None:
    """Read the program's output until it holds one of `words`."""
    said = b""
    while not any(word in said for word in words):
        more = os.read(process.stdout.fileno(), 4096)
        assert more, said.decode(errors="replace")
        said += more


def lose_reader_and_signal(process: subprocess.Popen, number: signal.Signals) -> int:
    """The program's exit code, and no process of it is left."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.stdout.close()
    os.killpg(process.pid, number)
    code = process.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    return code


def sft_flags(folder: Path, *more: object) -> list[object]:
    tiny.save(folder)
    tiny.shard(folder / "train.tar", 12)
    given = ["--shards", folder / "train.tar", "--vae", folder / "vqvae.safetensors", "--runs", folder / "runs", *tiny.SHAPE]
    given += ["--batch", "4", "--micro-batch", "2", "--steps", "1000000", "--checkpoint-every", "1000000", "--device", "cpu"]
    return [*given, *more]


def checkpoints(run: Path) -> list[Path]:
    return list((run / "checkpoints").glob("step_*"))


@pytest.mark.parametrize("number", [signal.SIGHUP, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_sft_saves_when_its_whole_group_is_signalled(tmp_path, number):
    """Its loading processes get the signal too, but have to go on until the run is saved."""
    program = start("sft.py", *sft_flags(tmp_path, "--memory-gb", "0", "--loader-workers", "2"))
    read_until(program, b"/1000000 [00", b"loss")
    assert lose_reader_and_signal(program, number) == 130
    assert len(checkpoints(tmp_path / "runs" / "sft")) == 1


@pytest.mark.slow
def test_no_loading_process_outlives_a_program_that_is_killed(tmp_path):
    program = start("sft.py", *sft_flags(tmp_path, "--memory-gb", "0", "--loader-workers", "2"))
    read_until(program, b"loss")
    children = psutil.Process(program.pid).children(recursive=True)
    assert children
    program.kill()
    _, alive = psutil.wait_procs(children, patience.HANG)
    assert not alive


@pytest.mark.slow
def test_sft_in_several_processes_ends_on_ctrl_c_without_a_reader(tmp_path):
    program = start("sft.py", *sft_flags(tmp_path, "--workers", "2"))
    read_until(program, b"of 1000000")
    assert lose_reader_and_signal(program, signal.SIGINT) == 130
    assert len(checkpoints(tmp_path / "runs" / "sft")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_grpo_saves_when_its_whole_group_is_signalled(tmp_path, number):
    write_inputs(tmp_path)
    settings = config(tmp_path, tmp_path / "runs", steps=1_000_000, monitor=RARELY)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_plain(settings)))
    program = start("grpo.py", "--config", tmp_path / "config.yaml")
    read_until(program, b"step     2")
    assert lose_reader_and_signal(program, number) == 130
    assert len(checkpoints(tmp_path / "runs" / "run")) == 1


@pytest.mark.slow
def test_grpo_goes_on_when_its_reader_leaves(tmp_path):
    write_inputs(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_plain(config(tmp_path, tmp_path / "runs", steps=2))))
    program = start("grpo.py", "--config", tmp_path / "config.yaml")
    read_until(program, b"\n")
    program.stdout.close()
    assert program.wait() == 0
    assert (tmp_path / "runs" / "run" / "model").is_dir()


@pytest.mark.slow
def test_the_trainings_of_parts_save_what_they_have(tmp_path):
    tiny.shard(tmp_path / "train.tar", 12, 16)
    flags = ["--shards", tmp_path / "train.tar", "--steps", "1000000", "--save-every", "1000000", "--device", "cpu"]
    adain = start("train_adain.py", *flags, "--out", tmp_path / "adain", "--memory-gb", "0", "--loader-workers", "1")
    read_until(adain, b"/1000000 [00")
    assert lose_reader_and_signal(adain, signal.SIGHUP) == 130
    assert (tmp_path / "adain" / "decoder.safetensors").is_file()
    pictures = tiny.shard(tmp_path / "heldout.tar", 4, 80)
    flags = ["--shards", pictures, "--heldout", pictures, "--steps", "1000000", "--batch", "2"]
    vqvae = start("train_vqvae.py", *flags, "--out", tmp_path / "vqvae")
    read_until(vqvae, b"s/it", *(b"%dit/s" % digit for digit in range(10)))
    assert lose_reader_and_signal(vqvae, signal.SIGTERM) == 130
    assert (tmp_path / "vqvae" / "vqvae.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_prepare_keeps_what_is_done_and_leaves_no_process(tmp_path, number):
    write_omnistyle(tmp_path / "in", contents=8, styles=150, targets=1200, size=128)
    out = tmp_path / "out"
    program = start("prepare.py", "omnistyle", tmp_path / "in", "--out", out, "--workers", "2")
    read_until(program, *(b"%d/1200" % done for done in range(100, 1200)))
    assert lose_reader_and_signal(program, number) == 130
    assert not list(out.glob("*.tar"))


@pytest.mark.slow
def test_workers_of_a_killed_program_end_with_it(tmp_path):
    write_omnistyle(tmp_path / "in", contents=8, styles=150, targets=1200, size=128)
    program = start("prepare.py", "omnistyle", tmp_path / "in", "--out", tmp_path / "out", "--workers", "2")
    read_until(program, *(b"%d/1200" % done for done in range(1, 1200)))
    assert lose_reader_and_signal(program, signal.SIGKILL) == -signal.SIGKILL
