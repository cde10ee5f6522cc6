"""Output never fails, blocks or delays: no reader, a reader who has stopped reading, a full disk, a poor character set."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from launch.common.console import KEPT, Outlet, text_stream

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from launch.common import cli
def body():
    {body}
    open({proof!r}, "w").close()
cli.exit_code(body)
"""


def start(tmp_path: Path, body: str, **streams) -> subprocess.Popen:
    """A program of ours that leaves the file `proof` when its work is done."""
    text = PROGRAM.format(root=str(ROOT), body=body, proof=str(tmp_path / "proof"))
    environment = {**os.environ, **streams.pop("environment", {})}
    return subprocess.Popen([sys.executable, "-c", text], env=environment, **streams)


def read(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def test_what_is_written_arrives_in_order():
    end, start_of_pipe = os.pipe()
    outlet = Outlet(start_of_pipe)
    stream = text_stream(outlet, "utf-8")
    for number in range(1000):
        print("line", number, file=stream)
    outlet.drain()
    os.close(start_of_pipe)
    assert read(end).decode().splitlines() == [f"line {number}" for number in range(1000)]


def test_what_an_encoding_lacks_is_replaced():
    end, start_of_pipe = os.pipe()
    outlet = Outlet(start_of_pipe)
    stream = text_stream(outlet, "latin-1")
    print("PSNR ↑ über \udcff", file=stream)
    outlet.drain()
    os.close(start_of_pipe)
    assert read(end) == "PSNR ? über ?\n".encode("latin-1")


def test_writing_goes_on_without_a_reader():
    end, start_of_pipe = os.pipe()
    os.close(end)
    outlet = Outlet(start_of_pipe)
    stream = text_stream(outlet, "utf-8")
    print("nobody reads this", file=stream, flush=True)
    outlet.drain()
    print("nor this", file=stream, flush=True)


def test_a_reader_who_stops_reading_blocks_nobody_and_is_served_later():
    end, start_of_pipe = os.pipe()
    outlet = Outlet(start_of_pipe)
    stream = text_stream(outlet, "utf-8")
    line = "x" * 999
    for _ in range(2 * KEPT):  # 20 MB; a pipe holds 64 kB
        print(line, file=stream)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(read(end)))
    reader.start()
    outlet.drain()
    os.close(start_of_pipe)
    reader.join()
    lines = found[0].decode().splitlines()
    assert KEPT <= len(lines) < 2 * KEPT
    assert set(lines) == {line}


def test_a_shared_terminal_that_was_made_non_blocking_loses_nothing():
    end, start_of_pipe = os.pipe()
    os.set_blocking(start_of_pipe, False)
    outlet = Outlet(start_of_pipe)
    found: list[bytes] = []
    outlet.write(b"x" * 300_000)
    reader = threading.Thread(target=lambda: found.append(read(end)))
    reader.start()
    outlet.drain()
    os.close(start_of_pipe)
    reader.join()
    assert len(found[0]) == 300_000


MANY = "for _ in range(5000): print('x' * 100); sys.stderr.write('y' * 100)"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_program_whose_reader_goes_away_ends_as_usual(tmp_path, stream):
    program = start(tmp_path, MANY, **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: subprocess.PIPE})
    getattr(program, stream).read(1)
    getattr(program, stream).close()
    assert program.wait() == 0
    assert (tmp_path / "proof").exists()


def test_a_program_whose_reader_stops_reading_ends_as_usual(tmp_path):
    program = start(tmp_path, MANY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert program.wait() == 0
    program.stdout.close()
    assert (tmp_path / "proof").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
def test_a_full_disk_below_the_log_is_no_reason_to_end(tmp_path):
    with open("/dev/full", "w") as full:
        assert start(tmp_path, MANY, stdout=full, stderr=full).wait() == 0
    assert (tmp_path / "proof").exists()


def test_closed_streams_are_no_reason_to_end(tmp_path):
    body = "from tqdm import tqdm; [tqdm.write('x') for _ in tqdm(range(3))]; print('x'); print('y', file=sys.stderr)"
    program = start(tmp_path, body, preexec_fn=lambda: (os.close(1), os.close(2)))
    assert program.wait() == 0
    assert (tmp_path / "proof").exists()


def test_errors_and_bugs_are_still_shown(tmp_path):
    """All of it, in its order, also on one stream for both, and in a locale that lacks characters."""
    body = "print('first ↑'); sys.stderr.write('second\\n'); print('third'); raise ZeroDivisionError"
    latin = {"PYTHONIOENCODING": "latin-1:strict", "PYTHONUTF8": "0"}
    program = start(tmp_path, body, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, environment=latin)
    said = program.communicate()[0].decode("latin-1")
    assert program.returncode == 1
    assert said.startswith("first ?\nsecond\nthird\nTraceback")
    assert said.rstrip().endswith("ZeroDivisionError")


def test_bars_have_no_lock_for_other_processes_and_no_thread_of_their_own(tmp_path):
    """An interruption between taking a lock and giving it back leaves it taken; nobody else may wait for it then."""
    body = "import threading, tqdm; b = tqdm.tqdm(total=9); own = type(threading.RLock())"
    body += "; assert isinstance(b.get_lock(), own); assert threading.active_count() == 2, threading.enumerate()"
    assert start(tmp_path, body, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).wait() == 0
    assert (tmp_path / "proof").exists()
