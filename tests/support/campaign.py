"""Bad input for every command: damaged files, a run of the command in this process, and what the project promises of it."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import runpy
import shutil
import signal
import stat
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from patience import HANG

ROOT = Path(__file__).parents[2]
SECONDS = 15.0
"""CPU time that a refusal may take."""
MEMORY = 2 * 2**30
"""Memory that a refusal may take, in bytes."""
SPARSE = 4 * 2**30
Damage = Callable[[Path], None]


@dataclass(frozen=True)
class Ending:
    """How a command ended: its exit code (None with a traceback), and what it printed."""

    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def refusal(self) -> str:
        """The line of the error; empty if there is not exactly one, as the last line."""
        lines = [line for line in self.err.replace("\r", "\n").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        return errors[0] if len(errors) == 1 and lines[-1] == errors[0] else ""


def run(program: str, *words: object) -> Ending:
    """`python launch/PROGRAM.py WORDS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    code: int | None = 0
    began = time.process_time()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _alarm():
        patch.setattr(sys, "argv", [f"{program}.py", *map(str, words)])
        patch.setattr(sys, "path", list(sys.path))
        try:
            runpy.run_path(str(ROOT / "launch" / f"{program}.py"), run_name="__main__")
        except SystemExit as end:
            code = 0 if end.code is None else int(end.code)
        except Exception:
            code = None
            err.write(traceback.format_exc())
    return Ending(code, out.getvalue(), err.getvalue(), time.process_time() - began)


def local_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let GRPO work in this process rather than through Ray, which takes seconds to start."""
    from launch.cluster import start
    from launch.rl.colocated import ColocatedWorker

    monkeypatch.setattr(start, "start_worker", lambda config, stop: ColocatedWorker())


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TimeoutError("the command hangs")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(int(HANG))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def tree(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """Every file and link below `folder`: its kind, size and time of change."""
    states = {}
    for at, _, names in os.walk(folder):
        for path in (Path(at, name) for name in names):
            found = path.lstat()
            states[path] = (stat.S_IFMT(found.st_mode), found.st_size, found.st_mtime_ns)
    return states


def keeps_promises(
    place: Path,
    program: str,
    words: Sequence[object],
    says: Sequence[object] = (),
    codes: Sequence[int] = (2,),
    writes: Sequence[Path] = (),
) -> Ending:
    """Run a command and assert what every bad input must end in.

    Its code is one of `codes`; a refusal is one line that contains all of `says` and goes on with a reason and a remedy;
    files in `place` stay as they are, and new ones appear only in the folders `writes`; time and memory are bounded.
    """
    files, peak = tree(place), _peak()
    ending = run(program, *words)
    shown = f"{program} {' '.join(map(str, words))}\n{ending.out}\n{ending.err}"
    assert ending.code in codes, shown
    assert "Traceback" not in ending.out + ending.err, shown
    if ending.code == 2:
        assert ending.refusal, shown
        assert all(str(word) in ending.refusal for word in says), f"{list(map(str, says))} not in {shown}"
        assert ": " in ending.refusal.removeprefix("error: "), shown
    after = tree(place)
    own = {path: state for path, state in files.items() if not any(path.is_relative_to(folder) for folder in writes)}
    assert {path: after.get(path) for path in own} == own, shown
    strange = [path for path in after.keys() - files.keys() if not any(path.is_relative_to(folder) for folder in writes)]
    assert strange == [], shown
    assert ending.seconds < SECONDS, shown
    assert _peak() <= max(peak, MEMORY), shown
    return ending


def _peak() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _cut(share: float) -> Damage:
    return lambda path: os.truncate(path, int(path.stat().st_size * share))


def _flip(share: float) -> Damage:
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(share * len(content))] ^= 0xFF
        path.write_bytes(content)

    return flip


def _instead(make: Callable[[Path], object]) -> Damage:
    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(SPARSE)


DAMAGES: dict[str, Damage] = {
    "missing": Path.unlink,
    "empty": _cut(0),
    "a folder": _instead(Path.mkdir),
    "a named pipe": _instead(os.mkfifo),
    "unreadable": lambda path: path.chmod(0),
    "a link to itself": _instead(lambda path: path.symlink_to(path)),
    "cut at a quarter": _cut(0.25),
    "cut at a half": _cut(0.5),
    "cut at three quarters": _cut(0.75),
    "a flipped byte in the header": _flip(0.0),
    "a flipped byte in the body": _flip(0.6),
    "wrong magic": lambda path: path.write_bytes(b"GARBAGE! " * 60) and None,
    "4 GB of nothing": _sparse,
}
"""What can be wrong with any file."""
FAST = ("a named pipe", "cut at a half")
"""Damage that is tried in every run of the tests; the rest takes minutes."""
SILENT = ("a flipped byte in the body",)
"""Damage that formats without checksums cannot show: the command may also end well."""
NEEDS_A_USER = pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")


def each_damage(names: Sequence[str] = tuple(DAMAGES), fast: Sequence[str] = FAST) -> list:
    """Parameters for the damages `names`, of which only those in `fast` are part of every run of the tests."""

    def marks(name: str) -> list[pytest.MarkDecorator]:
        return [*([] if name in fast else [pytest.mark.slow]), *([NEEDS_A_USER] if name == "unreadable" else [])]

    return [pytest.param(name, marks=marks(name)) for name in names]


def damaged_copy(source: Path, place: Path, file: str, damage: str) -> Path:
    """A copy of the folder `source` in `place`, in which `file` is damaged; returns that file."""
    shutil.copytree(source, place, symlinks=True)
    DAMAGES[damage](place / file)
    return place / file
