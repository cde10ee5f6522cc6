"""Read a file of weights safely, and find a model's state in it, however it is wrapped."""

from __future__ import annotations

import mmap
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from stylevar.errors import UserError
from stylevar.text import check_path

State = dict[str, Tensor]
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Name components that torch.compile, FSDP and activation checkpointing insert at any level."""
_FORBIDDEN = re.compile(r"GLOBAL (\S+)")  # the class or function that torch refused to unpickle


def read_file(path: Path, device: torch.device | str = "cpu") -> Any:
    """The content of a `.safetensors` or torch file. UserError if it cannot be read without running arbitrary code."""
    if path.suffix == ".safetensors":
        check_path(path, "checkpoint", utf8=True)
    if path.exists() and not path.is_file():  # reading a named pipe could wait forever
        raise UserError(f"checkpoint {path} is not a file: give a file of weights")
    try:
        if path.suffix == ".safetensors":
            return load_file(str(path), device=str(device))
        _check_stored(path)
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"checkpoint {path} does not exist: check the path, or copy it again") from error
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # Parsers raise many kinds of errors for damaged files.
        named = _FORBIDDEN.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if named and _spells_out(path, named[1]):
            raise UserError(
                f"{path} contains more than tensors ({named[1]}), and reading it could run code: "
                f"save only its state dict, or give a .safetensors file"
            ) from error
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
        reason = reason.splitlines()[0]
        raise UserError(f"{path} is not a readable checkpoint ({reason}): it may be truncated; download it again") from error


def _check_stored(path: Path) -> None:
    """UserError for a torch file with compressed parts: torch writes none, and a small file could fill the memory."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise UserError(f"{path} has compressed parts ({packed[0]}): save it again with torch.save")


def _spells_out(path: Path, name: str) -> bool:
    """Whether the file contains this pickled class name in full. If not, it was truncated inside a harmless class name."""
    module, _, attribute = name.rpartition(".")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(f"c{module}\n{attribute}\n".encode()) >= 0


def find_state(content: Any, landmark: str, source: str) -> State | None:
    """The state dict that contains the key `landmark`, at any level of nesting; None if there is none.

    It may be inside nested dicts (`"model"`, `"state_dict"`, a trainer's state) or part of a larger module, as with DDP
    (`module.`), Lightning (`model.`) and PEFT. Its names may be those of compiled, sharded or checkpointed modules.
    Raises UserError if there are several different ones.
    """
    states = _states(content, landmark, source, "")
    if not states:
        return None
    (first, state), *others = states.items()
    if different := [where for where, other in others if not _same(state, other)]:
        raise UserError(
            f"{source} contains {len(different) + 1} different models ({few([first, *different])}): save the state dict "
            "of the one you want to its own file"
        )
    return state


def _states(content: Any, landmark: str, source: str, where: str) -> dict[str, State]:
    """{location: state} of all state dicts that contain `landmark`."""
    if not isinstance(content, Mapping):
        return {}
    tensors: State = {}
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            name = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
            if name in tensors:
                raise UserError(f"{source} contains {name} twice, wrapped and unwrapped: save only one model's state dict")
            tensors[name] = value
    prefixes = [key.removesuffix(landmark) for key in tensors if f".{key}".endswith(f".{landmark}")]
    states = {
        f"{where}{prefix}*": {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        for prefix in prefixes
    }
    for key, value in content.items():
        states |= _states(value, landmark, source, f"{where}{key}/")
    return states


def _same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def few(names: Sequence[str], count: int = 3) -> str:
    """The first few of `names`, for a message."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
