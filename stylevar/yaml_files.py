"""Read and write YAML files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from stylevar.atomic import file_aside
from stylevar.errors import UserError
from stylevar.text_files import read_text


class _Loader(yaml.SafeLoader):
    """Refuses aliases: a few lines of them can stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)


def read_yaml(path: Path, remedy: str) -> Any:
    """The content of a YAML file. UserError, ending with `remedy`, if it cannot be read or is not YAML."""
    try:
        return yaml.load(read_text(path), _Loader)  # a safe loader
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): {remedy}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not YAML ({str(error).splitlines()[0]}): {remedy}") from error


def yaml_text(content: Any) -> str:
    """Nested dicts and lists as YAML, in their order."""
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def write_yaml(path: Path, content: Any) -> None:
    """Atomically write nested dicts and lists to a file. Raises OSError."""
    with file_aside(path) as aside:
        aside.write_text(yaml_text(content), encoding="utf-8")
