"""Join a Ray cluster or start one on this machine, and explain why a worker was lost."""

from __future__ import annotations

import logging
import os
import signal
import socket
from typing import Any

import ray
from ray._private import services
from ray.exceptions import OutOfMemoryError

from launch.common.checkout import worker_environment
from launch.common.cpus import available_cpus
from stylevar.errors import UserError
from stylevar.processes import sparing_children

logger = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds that a cluster may take to answer. Ray itself would wait for minutes."""
STARTS = 4
"""How often to try to start a local Ray whose processes come up too slowly."""
TOO_SLOW = "timed out during startup"
"""Ray's error message in that case."""
SOCKET_PATH = 107
"""Bytes that the path of a Unix socket may take."""
SESSION = len("/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store.12")
"""Bytes of these that Ray appends to its temporary folder."""
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4


def join_cluster(dashboard: bool = False) -> dict[str, float]:
    """Connect to the cluster that `ray job submit` or RAY_ADDRESS names, or start a local one. Returns its resources.

    `dashboard`: start the dashboard of a local cluster if it is installed. Ray Train asks it for the state of its actors.
    Raises UserError if no cluster answers, or if none can be started here.
    """
    if not ray.is_initialized():
        # The actor does all the work: at Ray's default niceness of 15, anything else on the machine would starve it.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # A job may have set PYTHONPATH too, and `worker_environment` includes it. Ray would refuse to merge the two.
        os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
        # Ray would start a process per CPU that no actor can use, because actors have an environment of their own.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        address = find_cluster()
        try:
            # A closed terminal signals Ray's processes too, but the run still needs them to save its state.
            with sparing_children(signal.SIGHUP):
                init_patiently(
                    # Without an address Ray would join the last cluster started here, and wait minutes if that has died.
                    address=address or "local",
                    num_cpus=available_cpus() if address is None else None,
                    include_dashboard=(None if dashboard else False) if address is None else None,
                    logging_level=logging.WARNING,
                    log_to_driver=True,
                    runtime_env=worker_environment(),
                    _temp_dir=temporary_folder() if address is None else None,
                )
        except (ConnectionError, OSError, RuntimeError, ValueError, ray.exceptions.RayError, SlowStart) as error:
            where = f"join the Ray cluster at {address}" if address else "start Ray on this machine"
            raise UserError(f"could not {where}: {_first_line(error)}") from error
    return ray.cluster_resources()


class SlowStart(Exception):
    """A local Ray did not come up within Ray's own time limit."""


def init_patiently(**settings: Any) -> None:
    """Call `ray.init`, up to `STARTS` times if Ray's processes take longer to start than the 30 s that Ray allows.

    This happens on busy machines. Raises SlowStart if every attempt is too slow.
    """
    for _ in range(STARTS):
        try:
            ray.init(**settings)
            return
        except Exception as error:  # Ray has no error class for this
            if TOO_SLOW not in str(error):
                raise
            ray.shutdown()
    raise SlowStart(f"its processes did not start within 30 s, {STARTS} times: is the machine overloaded?")


def find_cluster() -> str | None:
    """The host:port of the cluster that RAY_ADDRESS names, after checking that it answers; None if it names none.

    Raises UserError, within seconds, if the cluster does not answer.
    """
    named = os.environ.get("RAY_ADDRESS", "").strip()
    if named in ("", "local"):
        return None
    remedy = "start one with `ray start --head`, or unset RAY_ADDRESS to use this machine alone"
    if "://" in named:
        raise UserError(
            f"RAY_ADDRESS={named} is the address of the job API or of a Ray client: give the cluster's own address, such as "
            "HEAD:6379, or use `ray job submit`, which sets it"
        )
    try:
        address = services.canonicalize_bootstrap_address(named)
        assert address is not None
        host, port = services.extract_ip_port(address)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"RAY_ADDRESS={named} names no Ray cluster ({_first_line(error)}): {remedy}") from error
    try:
        answers = _answers(host, port)
    except OSError as error:
        raise UserError(f"no Ray cluster answers at RAY_ADDRESS={named} ({error}): {remedy}") from error
    if not answers:
        raise UserError(f"the server at RAY_ADDRESS={named} is not a Ray cluster: give `ray start`'s port, usually 6379")
    return address


def why_lost(error: BaseException) -> str:
    """Why a worker was lost, in a few words."""
    said = str(getattr(error, "cause", None) or error).strip()
    if "running low on memory" in said or isinstance(error, OutOfMemoryError):
        return "Ray ended its process because memory ran out"
    if "its worker process has died" in said:
        return "its process was killed, perhaps because memory ran out"
    if "its node has died" in said:
        return "its node was lost"
    return said.splitlines()[0] if said else type(error).__name__


def _answers(host: str, port: int) -> bool:
    """Whether a gRPC server such as Ray's listens there: it greets with its HTTP/2 settings. Raises OSError."""
    with socket.create_connection((host, port), PATIENCE) as connection:
        if os.environ.get("RAY_USE_TLS", "0") != "0":
            return True
        connection.sendall(_HELLO)
        try:
            head = connection.recv(4)
        except TimeoutError:
            return False
    return len(head) == 4 and head[3] == _SETTINGS


def temporary_folder() -> str:
    """The folder for a local Ray's sockets and logs: RAY_TMPDIR or TMPDIR, if the path is short enough for sockets."""
    usual = "/tmp/ray"
    named = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR")
    folder = os.path.join(os.path.abspath(named), "ray") if named else usual
    if len(os.fsencode(folder)) + SESSION <= SOCKET_PATH:
        return folder
    logger.warning("the path %s is too long for Ray's sockets: Ray uses %s", folder, usual)
    return usual


def _first_line(error: BaseException) -> str:
    """An error's message without its traceback."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" .:") if lines else type(error).__name__
