"""One writer per run's folder."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from launch.run import run_lock
from launch.run.run_lock import LOCK, only_writer
from stylevar.errors import UserError

ROOT = Path(run_lock.__file__).parents[2]
HOLD = """
import sys
from pathlib import Path
from launch.run.run_lock import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_refused_until_the_first_is_dead(tmp_path):
    run = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"process {holder.pid} on {os.uname().nodename}") as refused, only_writer(run):
            pass
        assert "\n" not in str(refused.value)
        holder.send_signal(signal.SIGKILL)
    finally:
        holder.kill()
        holder.communicate()
    assert (run / LOCK).exists()
    with only_writer(run):
        pass


def test_it_is_free_again_afterwards_and_nothing_is_left_of_a_run_that_could_not_start(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(RuntimeError), only_writer(run):
        raise RuntimeError
    assert not run.exists()
    with only_writer(run):
        (run / "config.yaml").write_text("")
    with only_writer(run):
        pass
    assert (run / "config.yaml").exists()


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """Its last holder, a run that could not start, clears up between the opening and the locking."""
    flock, opened = fcntl.flock, []

    def late(file, operation):
        if not opened:
            (tmp_path / LOCK).unlink()
        opened.append(file)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    (tmp_path / "config.yaml").write_text("")
    with only_writer(tmp_path):
        monkeypatch.undo()
        with pytest.raises(UserError, match="is being written by process"), only_writer(tmp_path):
            pass
    assert len(opened) == 2


def test_a_run_that_was_moved_does_not_remove_the_lock_of_the_next_one(tmp_path):
    run = tmp_path / "run"
    with ExitStack() as following:
        with only_writer(run):
            run.rename(tmp_path / "moved")
            following.enter_context(only_writer(run))
        assert (run / LOCK).exists()
    assert not run.exists()


def test_a_file_system_without_locks_is_said_and_no_hindrance(tmp_path, monkeypatch, capsys):
    def refused(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    with only_writer(tmp_path):
        pass
    assert "has no locks" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["x" * 260, "file/run", "file"])
def test_a_place_that_cannot_be_written(tmp_path, name):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="is not writable.*choose another --runs or --name"), only_writer(tmp_path / name):
        pass
