"""Settings as they are kept: as YAML's own types and back, with absolute paths."""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar, get_args, get_origin, overload

from stylevar.errors import UserError
from stylevar.hub import followed
from stylevar.yaml_files import read_yaml

ConfigT = TypeVar("ConfigT")
RunKind = Literal["grpo", "sft"]


def kind_of(settings: Mapping[str, Any]) -> RunKind:
    """Which program's run a config.yaml is of. Older versions did not write it down; of theirs only SFT's have `epochs`."""
    said = settings.get("kind", "sft" if "epochs" in settings else "grpo")
    return "sft" if said == "sft" else "grpo"


class RunConfig(Protocol):
    """The settings of a whole run."""

    kind: ClassVar[RunKind]

    def absolute(self) -> RunConfig:
        """The same settings with absolute paths."""
        ...


def as_kept(config: RunConfig) -> dict[str, Any]:
    """What a run's config.yaml holds: its kind, and its settings with absolute paths, from which it can be started again."""
    return {"kind": config.kind, **to_plain(config.absolute())}


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
    """The config of the dataclass `kind` from what `to_plain` or `as_kept` made of it.

    Raises UserError, which begins with `refusal`, for anything else, such as another kind of run.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{refusal}: it needs names with values in place of {values!r:.40}")
    values = without_kind(kind, values, refusal)
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


def without_kind(config: type, values: Mapping[str, Any], refusal: str) -> dict[str, Any]:
    """A run's settings but for its kind, which older versions did not write down."""
    expected: RunKind | None = getattr(config, "kind", None)
    if expected is None or "kind" not in values:
        return dict(values)
    if values["kind"] != expected:
        raise UserError(f"{refusal}: it is of a run of kind {values['kind']}; give that of a run of kind {expected}")
    return {name: value for name, value in values.items() if name != "kind"}


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
    """A local file or folder by its absolute path, so that it is found from any folder; a hub id, or None, as it is.

    A run's `latest` or `best` becomes the checkpoint that it names now, since it will name others.
    """
    if source is None or not os.path.exists(source):
        return source
    return os.path.abspath(followed(Path(source)))


def absolute_patterns(patterns: Sequence[str]) -> tuple[str, ...]:
    """The same for shards, which are always local."""
    return tuple(os.path.abspath(pattern) for pattern in patterns)
