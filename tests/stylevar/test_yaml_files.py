"""YAML comes back as it was written, and a file that is not YAML is refused with the file's name."""

from __future__ import annotations

from math import inf
from pathlib import Path

import pytest

from stylevar.errors import UserError
from stylevar.yaml_files import read_yaml, write_yaml, yaml_text


def test_what_is_written_is_read(tmp_path: Path) -> None:
    content = {"z": 1e-5, "a": [1, None, True], "name": "漢字: é", "nested": {"minutes": inf}}
    write_yaml(tmp_path / "config.yaml", content)
    assert read_yaml(tmp_path / "config.yaml", "") == content
    assert list(read_yaml(tmp_path / "config.yaml", "")) == ["z", "a", "name", "nested"]
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") == yaml_text(content)
    assert "漢字" in yaml_text(content)


@pytest.mark.parametrize("content", [b"steps: [", b"\xff\xfe\x00", b"day: 2026-99-99"])
def test_what_is_no_yaml_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.yaml is not YAML \(.*\): restore it$") as refused:
        read_yaml(tmp_path / "config.yaml", "restore it")
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml cannot be read \(No such file or directory\): give another$"):
        read_yaml(tmp_path / "none.yaml", "give another")
