"""YAML as runs keep it: how it is read, and how it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from stylevar.atomic import file_aside
from stylevar.errors import UserError


def read_yaml(path: Path, remedy: str) -> Any:
    """What a YAML file holds. UserError, which ends in `remedy`, if it cannot be read or is no YAML."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {remedy}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is no YAML ({str(error).splitlines()[0]}): {remedy}") from error


def yaml_text(content: Any) -> str:
    """Nested dicts and lists as YAML, in their own order."""
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def write_yaml(path: Path, content: Any) -> None:
    """Keep nested dicts and lists in a file, which appears whole or not at all. Raises OSError."""
    with file_aside(path) as aside:
        aside.write_text(yaml_text(content), encoding="utf-8")
