"""Exit codes: 2 and one line for a user's mistake, 130 for Ctrl-C, a traceback for our own bugs."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from launch.common import cli
from stylevar.allocator import keep_freed_memory
from stylevar.errors import UserError


@dataclass
class Config:
    steps: int = 3
    """How many."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"--steps {self.steps}: must be at least 1")


def run(monkeypatch, *argv: str, main=None) -> list[int]:
    seen: list[int] = []
    monkeypatch.setattr("sys.argv", ["program", *argv])
    cli.run(main or (lambda config: seen.append(config.steps)), Config)
    return seen


def test_flags_reach_the_program(monkeypatch):
    assert run(monkeypatch, "--steps", "7") == [7]


@pytest.mark.parametrize(("argv", "words"), [(["--steps", "0"], "error: --steps 0"), (["--stpes", "1"], "stpes")])
def test_mistakes_end_with_code_2(monkeypatch, capsys, argv, words):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, *argv)
    assert end.value.code == 2
    assert words in capsys.readouterr().err


def test_ctrl_c_ends_with_code_130(monkeypatch, capsys):
    def interrupted(config: Config) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        run(monkeypatch, main=interrupted)
    assert end.value.code == 130
    assert "interrupted" in capsys.readouterr().err


def test_scarce_memory_is_returned_block_by_block(monkeypatch):
    """Blocks of a MiB and more get pages of their own (M_MMAP_THRESHOLD, -3), which go back as soon as they are freed."""
    said = []
    libc = SimpleNamespace(mallopt=lambda option, value: said.append((option, value)) or 1)
    monkeypatch.setattr("ctypes.CDLL", lambda _: libc)
    monkeypatch.setattr("sys.platform", "linux")
    for scarce in (False, True):
        assert keep_freed_memory(scarce)
    assert [value for option, value in said if option == -3] == [32 << 20, 1 << 20]


def test_bugs_keep_their_traceback(monkeypatch):
    def broken(config: Config) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(monkeypatch, main=broken)


def test_the_allocator_takes_its_settings_only_where_it_can(monkeypatch):
    assert isinstance(keep_freed_memory(), bool)
    monkeypatch.setattr("sys.platform", "darwin")
    assert keep_freed_memory() is False


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EDQUOT, "Disk quota exceeded", "runs/a.png"),
        OSError(errno.EIO, "Input/output error"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_or_broken_disk_ends_with_code_2(monkeypatch, capsys, error):
    def fail(config):
        raise error

    with pytest.raises(SystemExit) as end:
        run(monkeypatch, main=fail)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "free space" in said


def test_a_missing_file_that_nobody_foresaw_keeps_its_traceback(monkeypatch):
    def fail(config):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "x")

    with pytest.raises(FileNotFoundError):
        run(monkeypatch, main=fail)
