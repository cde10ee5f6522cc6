"""Convert settings to plain YAML types and back, with absolute paths."""

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
    """Which program wrote a config.yaml. Older versions did not save the kind; among theirs, only SFT's have `epochs`."""
    said = settings.get("kind", "sft" if "epochs" in settings else "grpo")
    return "sft" if said == "sft" else "grpo"


class RunConfig(Protocol):
    """The settings of a whole run."""

    kind: ClassVar[RunKind]

    def absolute(self) -> RunConfig:
        """The same settings with absolute paths."""
        ...


def as_kept(config: RunConfig) -> dict[str, Any]:
    """The content of a run's config.yaml: the kind of run, and its settings with absolute paths."""
    return {"kind": config.kind, **to_plain(config.absolute())}


def to_plain(config: Any) -> dict[str, Any]:
    """A config, or settings in a dict, as nested dicts of plain YAML types."""

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
    """Read a config of the dataclass `kind` from the file `path`; `what` names its owner in errors, such as "an SFT run".

    Raises UserError if the file cannot be read or holds something else.
    """
    values = read_yaml(path, f"give the config.yaml of {what}")
    refusal = f"{path} is not the config of {what}"
    try:
        return from_plain(kind, values, refusal)
    except TypeError as error:
        raise UserError(f"{refusal} ({error}): correct it, or give another") from error


def from_plain(kind: type, values: Mapping[str, Any], refusal: str) -> Any:
    """The inverse of `to_plain` and `as_kept`: a config of the dataclass `kind`.

    Raises UserError, which begins with `refusal`, for any other values, such as those of another kind of run.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{refusal}: it needs names with values in place of {values!r:.40}")
    values = without_kind(kind, values, refusal)
    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - known):
        raise UserError(f"{refusal}: it has unknown keys {unknown}; remove them or correct their names")

    def typed(name: str, hint: Any, value: Any) -> Any:
        if dataclasses.is_dataclass(hint):
            return from_plain(typing.cast(type, hint), value, refusal)
        if get_origin(hint) in (types.UnionType, typing.Union):
            options = [h for h in get_args(hint) if h is not type(None)]
            return None if value is None else typed(name, options[0], value)
        if get_origin(hint) is tuple:
            items = _as_tuple(value)
            return tuple(typed(name, str, item) for item in items) if get_args(hint)[0] is str else items
        _check_kind(name, hint, value)  # bounds check the numbers
        return Path(value) if hint is Path else value

    arguments = {name: typed(name, hints[name], value) for name, value in values.items()}
    try:
        return kind(**arguments)
    except UserError as error:
        raise UserError(f"{refusal}: {error.for_command_line()}") from error


def _check_kind(name: str, hint: Any, value: Any) -> None:
    """TypeError for a value that is not of its field's type: text, a switch, or one of some words."""
    if hint in (str, Path) and not isinstance(value, str):
        raise TypeError(f"{name} is {value!r:.40}, not text")
    if hint is bool and not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r:.40}, not true or false")
    if get_origin(hint) is Literal and value not in get_args(hint):
        raise TypeError(f"{name} is {value!r:.40}, not one of {', '.join(map(str, get_args(hint)))}")


def without_kind(config: type, values: Mapping[str, Any], refusal: str) -> dict[str, Any]:
    """A run's settings without its kind. Older versions did not save the kind. UserError if it is not that of `config`."""
    expected: RunKind | None = getattr(config, "kind", None)
    if expected is None or "kind" not in values:
        return dict(values)
    if values["kind"] != expected:
        raise UserError(f"{refusal}: it belongs to a run of kind {values['kind']}; give one of kind {expected}")
    return {name: value for name, value in values.items() if name != "kind"}


def _as_tuple(value: Any) -> tuple[Any, ...]:
    """A YAML list as a tuple, nested lists too. Older versions wrote a set of shards as one pattern or null."""
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
    """The absolute path of a local file or folder; a hub id or None is returned unchanged.

    A run's `latest` or `best` is replaced by the checkpoint that it names now, because it will change.
    """
    if source is None or not os.path.exists(source):
        return source
    return os.path.abspath(followed(Path(source)))


def absolute_patterns(patterns: Sequence[str]) -> tuple[str, ...]:
    """The absolute paths of shards, which are always local."""
    return tuple(os.path.abspath(pattern) for pattern in patterns)
