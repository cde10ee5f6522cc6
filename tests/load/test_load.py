"""The tools beside this file: small runs of them, and what they measure with."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import prepare as tool
import pyarrow.parquet as pq
import pytest
from program import exit_code
from soak import growth, memory, processes

from launch import prepare

TOOLS = Path(__file__).parent


def test_growth_is_that_of_the_level_and_not_of_single_peaks() -> None:
    assert growth([100.0] * 50 + [300.0] + [100.0] * 50) == 0
    assert growth([100.0 + step for step in range(100)]) == pytest.approx(0.86, abs=0.01)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_is_found_for_living_processes_only() -> None:
    assert os.getpid() in processes(os.getpid())
    before = memory(os.getpid())
    held = mmap.mmap(-1, 64 * 2**20)  # an array could be placed in memory that was freed before
    held[:: mmap.PAGESIZE] = b"x" * (len(held) // mmap.PAGESIZE)
    after = memory(os.getpid())
    assert before is not None
    assert after is not None
    assert after[0] - before[0] > 60
    assert len(held) > 0
    assert memory(2**22 + 1) is None


def test_one_broken_item_of_each_kind_is_counted_wherever_it_is(tmp_path, monkeypatch, capsys) -> None:
    """Those that are found while an archive is listed come first: they do not count as a share of what is done by then."""
    good, bad = tool.write_corpus(tmp_path / "in", 2000)
    assert bad.total() == len(tool.faults()) == 20
    words = tool.command(tmp_path / "in", tmp_path / "out")[2:]
    assert exit_code(monkeypatch, prepare.main, *words, "--workers", "1") == 0, capsys.readouterr().err
    names = pq.read_table(tmp_path / "out" / "manifest.parquet", columns=["target_name"])["target_name"].to_pylist()
    assert len(names) == len(set(names)) == good == 1980
    assert Counter(pq.read_table(tmp_path / "out" / "rejects.parquet")["kind"].to_pylist()) == bad


def run(name: str, *words: str) -> None:
    ending = subprocess.run([sys.executable, TOOLS / f"{name}.py", *words], capture_output=True, text=True)
    assert ending.returncode == 0, ending.stdout + ending.stderr


@pytest.mark.slow
def test_a_soak(tmp_path) -> None:
    """Whether memory grows takes more steps than this to tell."""
    run("soak", "--tiny", "--steps", "40", "--warm", "20", "--limit", "0.2", "--out", str(tmp_path))
    assert (tmp_path / "memory.csv").read_text().count("run folder") == 4


@pytest.mark.slow
def test_a_set_that_is_interrupted() -> None:
    run("prepare", "--triplets", "3000")


@pytest.mark.slow
def test_a_page_with_visitors() -> None:
    pytest.importorskip("gradio")
    run("page", "--requests", "8", "--clients", "2", "--limit", "0.2")
