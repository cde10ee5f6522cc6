"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stylevar.atomic import file_aside, folder_aside, remove


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_others_may_read_what_the_umask_lets_them(umask, tmp_path):
    tensors = {"x": torch.zeros(3)}
    with file_aside(tmp_path / "a.safetensors") as aside:
        assert not aside.exists()
        save_file(tensors, str(aside))
    with folder_aside(tmp_path / "model") as folder:
        (folder / "deep").mkdir()
        save_file(tensors, str(folder / "deep" / "b.safetensors"))
    assert mode(tmp_path / "a.safetensors") == mode(tmp_path / "model" / "deep" / "b.safetensors") == 0o640


def test_nothing_is_left_of_a_failure(tmp_path):
    (tmp_path / "a.txt").write_text("old")

    def broken() -> None:
        with file_aside(tmp_path / "a.txt") as aside:
            aside.write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    with pytest.raises(FileNotFoundError), file_aside(tmp_path / "a.txt"):
        pass  # nothing was written
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.parametrize(
    "name", [b"x" * 255, b"x" * 251 + b".png", "\u6f22".encode() * 85, b"caf\xe9", b".x", b"-x", b"[x] y"]
)
def test_any_name_that_a_file_may_have(tmp_path, name):
    target = tmp_path / os.fsdecode(name)
    for text in ("old", "new"):
        with file_aside(target) as aside:
            assert aside.name.endswith(target.suffix)
            aside.write_text(text)
        assert target.read_text() == text
    target.unlink()
    for _ in range(2):
        with folder_aside(target) as folder:
            (folder / "file").touch()
    remove(target)
    assert list(tmp_path.iterdir()) == []


def test_two_long_names_do_not_share_what_is_written_aside(tmp_path):
    with file_aside(tmp_path / ("x" * 254 + "a")) as one, file_aside(tmp_path / ("x" * 254 + "b")) as other:
        one.write_text("a")
        other.write_text("b")
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["a", "b"]
