"""Which Ray a program joins, and what it says where there is none."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import ray
from ray._private import services

import launch.common.ray_cluster
from launch.common.ray_cluster import find_cluster, join_cluster, temporary_folder
from stylevar.errors import UserError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Short, since Ray keeps sockets there."""
    folder = Path(tempfile.mkdtemp(prefix="sv-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def joined(**variables: str) -> subprocess.CompletedProcess:
    """What `join_cluster` does in a program with these variables."""
    code = "from launch.common.ray_cluster import join_cluster; print('joined', join_cluster()['CPU'])"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env={**environment, **variables}, capture_output=True, text=True, check=False)


def test_a_dead_cluster_that_was_started_here_is_not_waited_for(ray_folder):
    """Not even if RAY_ADDRESS is set, but empty. Ray's sockets find room, although TMPDIR is too long for them."""
    (ray_folder / "ray").mkdir()
    (ray_folder / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    done = joined(RAY_TMPDIR=str(ray_folder), RAY_ADDRESS="")
    assert "joined" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_long_temporary_folder_is_no_obstacle(tmp_path):
    done = joined(TMPDIR=str(tmp_path / ("x" * 110)))
    assert "joined" in done.stdout, done.stderr
    assert "is too long for Ray's sockets: Ray uses /tmp/ray" in done.stderr


def test_ray_keeps_its_sockets_where_their_paths_fit(monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for named, folder in (("", "/tmp/ray"), ("/scratch", "/scratch/ray"), ("/s" * 55, "/tmp/ray")):
        monkeypatch.setenv("TMPDIR", named)
        assert temporary_folder() == folder
    monkeypatch.setenv("RAY_TMPDIR", "/other")
    assert temporary_folder() == "/other/ray"


@pytest.fixture
def port() -> int:
    """A port on which nobody listens."""
    with closing(socket.create_server(("", 0))) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize("named", ["", "  ", "local"])
def test_an_empty_address_names_no_cluster(monkeypatch, named):
    monkeypatch.setenv("RAY_ADDRESS", named)
    assert find_cluster() is None
    monkeypatch.delenv("RAY_ADDRESS")
    assert find_cluster() is None


def refusal(monkeypatch: pytest.MonkeyPatch, named: str) -> str:
    """What a program says, before Ray itself is asked for anything that could take minutes."""
    monkeypatch.setenv("RAY_ADDRESS", named)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray would wait for minutes"))
    with pytest.raises(UserError) as refused:
        join_cluster()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_dead_address_is_refused(monkeypatch, port):
    said = refusal(monkeypatch, f"127.0.0.1:{port}")
    assert f"no Ray cluster answers at RAY_ADDRESS=127.0.0.1:{port}" in said
    assert "`ray start --head`, or unset RAY_ADDRESS" in said


@pytest.mark.parametrize("stale", [False, True])
def test_auto_is_refused_where_no_cluster_runs(monkeypatch, ray_folder, port, stale):
    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setenv("RAY_TMPDIR", str(ray_folder))
    if stale:
        (ray_folder / "ray").mkdir()
        (ray_folder / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{port}")
    assert "start one with `ray start --head`, or unset RAY_ADDRESS" in refusal(monkeypatch, "auto")


@pytest.mark.parametrize("named", ["127.0.0.1", "host:port", "127.0.0.1:99999"])
def test_what_is_no_address_is_refused(monkeypatch, named):
    assert f"RAY_ADDRESS={named} names no Ray cluster" in refusal(monkeypatch, named)


@pytest.mark.parametrize("named", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265"])
def test_the_addresses_of_clients_and_jobs_are_told_apart(monkeypatch, named):
    assert "give the cluster's own address, such as HEAD:6379, or use `ray job submit`" in refusal(monkeypatch, named)


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_another_server_is_not_taken_for_a_cluster(monkeypatch, greeting):
    """One that answers otherwise, and one that never says a word."""
    monkeypatch.setattr(launch.common.ray_cluster, "PATIENCE", 5.0 if greeting else 0.2)
    over = threading.Event()
    with closing(socket.create_server(("", 0))) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(greeting)
                over.wait()

        threading.Thread(target=serve, daemon=True).start()
        said = refusal(monkeypatch, f"127.0.0.1:{server.getsockname()[1]}")
        over.set()
    assert "is not a Ray cluster: give `ray start`'s port, usually 6379" in said


def test_what_ray_says_when_it_cannot_start_is_one_line(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def init(**_: object) -> None:
        raise OSError("no space left on device\nand more")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match="could not start Ray on this machine: no space left on device$"):
        join_cluster()


@pytest.mark.parametrize(("dashboard", "asked"), [(True, None), (False, False)])
def test_a_dashboard_is_started_only_where_ray_is_installed_with_it(monkeypatch, dashboard, asked):
    """Ray fails if it is told to start one that it lacks, and goes on without if that is left to it."""
    seen = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **given: seen.update(given))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0})
    assert join_cluster(dashboard) == {"CPU": 1.0}
    assert seen["include_dashboard"] is asked


@pytest.mark.parametrize("slow", [0, 1, 3, 4])
def test_a_ray_that_a_busy_machine_starts_too_slowly_is_started_again(monkeypatch, slow):
    starts = []

    def init(**_: object) -> None:
        starts.append(1)
        if len(starts) <= slow:
            raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0})
    if slow < 4:
        assert join_cluster() == {"CPU": 1.0}
        assert len(starts) == slow + 1
    else:
        with pytest.raises(UserError, match="could not start Ray on this machine: its processes did not start within 30 s"):
            join_cluster()
