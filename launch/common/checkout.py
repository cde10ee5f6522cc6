"""Make every process of a program run the same checkout, whatever else is on the path.

Our packages have common names such as `data`, `reward` and `launch`, which a user's own files may have too. A program puts
its checkout first on its own path. This module does the same for Ray's workers and for loading processes; otherwise they
would look in the current folder first, or run another checkout that is installed.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from stylevar.processes import starting_workers

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("data", "launch", "learner", "reward", "rollout", "stylevar")
LONGEST_TEMPORARY_FOLDER = 60
"""Characters. Sockets are created in folders below it, and a socket's path may have about 107 characters."""


def worker_environment() -> dict[str, Any]:
    """The `runtime_env` with which Ray's workers run this checkout.

    On another node, the path of this checkout has no effect unless the checkout exists there too. Such a node runs the code
    that `--working-dir` shipped, or the installed package.
    """
    paths = [str(ROOT), os.environ.get("PYTHONPATH", ""), "${PYTHONPATH}"]
    return {
        "env_vars": {"PYTHONPATH": os.pathsep.join(path for path in paths if path)},
        "worker_process_setup_hook": f"{__name__}.{pin.__name__}",
    }


def pin() -> None:
    """Import our packages from this checkout from now on. Ray calls this in each worker before adding the current folder."""
    if not isinstance(sys.meta_path[0], _Checkout):
        sys.meta_path.insert(0, _Checkout())


class _Checkout(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(ROOT)]) if name in PACKAGES else None


def process_context(*preloaded: str) -> BaseContext:
    """A context that starts processes from a fork server, which has imported the modules `preloaded` once for all of them.

    Nothing is forked from this process, because its threads may hold locks. The started processes ignore stop signals.
    """
    context = multiprocessing.get_context("forkserver")
    # The server looks for modules in the current folder first, and Python 3.10 has no option against that. There, each
    # process imports its modules itself, from the path that it is given.
    if sys.version_info >= (3, 11):
        context.set_forkserver_preload(list(preloaded))
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    safe = _environment(PYTHONSAFEPATH="1", PYTHONPATH=os.pathsep.join(path for path in paths if path))
    with safe, _short_tempdir(), starting_workers():
        forkserver.ensure_running()
    return context


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _short_tempdir() -> Iterator[None]:
    """Put the server's socket in /tmp if the path of the usual temporary folder is too long for a socket."""
    usual = tempfile.tempdir
    if len(os.fsencode(tempfile.gettempdir())) > LONGEST_TEMPORARY_FOLDER:
        tempfile.tempdir = "/tmp"
    try:
        yield
    finally:
        tempfile.tempdir = usual
