"""Settings as they are kept: as YAML's own types and back, with absolute paths."""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, overload

from stylevar.errors import UserError
from stylevar.yaml_files import read_yaml

ConfigT = TypeVar("ConfigT")


def to_plain(config: Any) -> dict[str, Any]:
    """A config, or settings in a dict, as nested dicts of YAML's own types."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            return {name: plain(v) for name, v in value.items()}
        if isinstance(value, (tuple, list)):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return plain(config)


def load_settings(kind: type[ConfigT], path: Path, what: str) -> ConfigT:
    """The config of the dataclass `kind` that is kept in the file `path`; `what` says whose it is, such as "an SFT run".

    Raises UserError if the file cannot be read or holds something else.
    """
    values = read_yaml(path, f"give the config.yaml of {what}")
    refusal = f"{path} is not the config of {what}"
    try:
        return from_plain(kind, values, refusal)
    except TypeError as error:
        raise UserError(f"{refusal} ({error}): correct it, or give another") from error


def from_plain(kind: type, values: Mapping[str, Any], refusal: str) -> Any:
    """The config of the dataclass `kind` from what `to_plain` made of it.

    Raises UserError, which begins with `refusal`, for anything else.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{refusal}: it needs names with values in place of {values!r:.40}")
    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - known):
        raise UserError(f"{refusal}: it has unknown keys {unknown}; remove them or correct their names")

    def typed(hint: Any, value: Any) -> Any:
        if dataclasses.is_dataclass(hint):
            return from_plain(typing.cast(type, hint), value, refusal)
        if get_origin(hint) in (types.UnionType, typing.Union):
            options = [h for h in get_args(hint) if h is not type(None)]
            return None if value is None else typed(options[0], value)
        if get_origin(hint) is tuple:
            return _as_tuple(value)
        return Path(value) if hint is Path else value

    return kind(**{name: typed(hints[name], value) for name, value in values.items()})


def _as_tuple(value: Any) -> tuple[Any, ...]:
    """A list of YAML's, with the lists in it; or what an older version wrote for a set of shards, one pattern or null."""
    if value is None:
        return ()
    if not isinstance(value, list):
        return (value,)
    return tuple(_as_tuple(item) if isinstance(item, list) else item for item in value)


@overload
def absolute_source(source: str) -> str: ...


@overload
def absolute_source(source: None) -> None: ...


def absolute_source(source: str | None) -> str | None:
    """A local file or folder by its absolute path, so that it is found from any folder; a hub id, or None, as it is."""
    return os.path.abspath(source) if source is not None and os.path.exists(source) else source


def absolute_patterns(patterns: Sequence[str]) -> tuple[str, ...]:
    """The same for shards, which are always local."""
    return tuple(os.path.abspath(pattern) for pattern in patterns)
