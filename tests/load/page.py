"""Serve the page of `launch/demo_app.py`, and ask it for pictures from several clients at once.

python tests/load/page.py --requests 200 --clients 8

Needs `pip install -e '.[app]'`. Every client asks for the same things and keeps a few requests waiting. Ends with 1 if a
request gets no answer or another one than the other clients got, if a client's answers come in another order than it asked,
or if the server's memory grows by more than the limit.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soak import growth, memory

ROOT = Path(__file__).parents[2]
WAITING = 3
"""Requests that a client keeps waiting. All clients together must fit the queue of the page."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def connect(url: str, server: subprocess.Popen[bytes]) -> Any:
    """A client, once the server answers. Only the text of its answers is downloaded."""
    from gradio_client import Client

    while True:
        try:
            return Client(url, verbose=False, download_files=False, httpx_kwargs={"timeout": None})
        except Exception:  # whatever httpx raises while nothing listens
            if server.poll() is not None:
                sys.exit(f"the server ended with {server.returncode}")
            time.sleep(1)


@dataclass
class Visitor:
    """One client's answers by the number of the request, and these numbers in the order in which the answers came."""

    client: Any
    pictures: list[str]
    answers: dict[int, str] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def visit(self, requests: int) -> None:
        jobs: deque[tuple[int, float, Any]] = deque()
        for number in range(requests):
            jobs.append((number, time.monotonic(), self._ask(number)))
            if len(jobs) == WAITING:
                self._take(*jobs.popleft())
        for job in jobs:
            self._take(*job)

    def _ask(self, number: int) -> Any:
        from gradio_client import handle_file
        from gradio_client.utils import Status

        content, style = (handle_file(self.pictures[(number + shift) % len(self.pictures)]) for shift in (0, 1))
        sampling = (1 + number % 2, 0.0, 1.0, 900, 0.96, number, "crop")
        job = self.client.submit(
            content, style, *sampling, api_name="/stylise", result_callbacks=[lambda *_: self._came(number)]
        )
        # The client uploads in threads: without this wait, a later request could reach the page first.
        while job.status().code in (Status.STARTING, Status.JOINING_QUEUE):
            time.sleep(0.05)
        return job

    def _came(self, number: int) -> None:
        """The page has answered this request."""
        self.order.append(number)

    def _take(self, number: int, asked: float, job: Any) -> None:
        job.result()  # a loop over the job itself would keep a core busy
        _, _, status, rewards = job.outputs()[-1]
        self.answers[number] = f"{status}\n{rewards}"
        self.seconds.append(time.monotonic() - asked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("flags", nargs="*", help="flags for launch/demo_app.py, after --")
    parser.add_argument("--limit", type=float, default=0.05, help="growth of memory allowed after a fifth of the requests")
    given = parser.parse_args()
    each = given.requests // given.clients
    port, cache = free_port(), tempfile.mkdtemp(prefix="page-")
    pictures = [str(path) for path in sorted((ROOT / "data/demo/photos").glob("*.jpg"))[:8]]
    command = [sys.executable, str(ROOT / "launch/demo_app.py"), "--port", str(port), *given.flags]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "GRADIO_TEMP_DIR": cache}) as server:
        try:
            visitors = [Visitor(connect(f"http://127.0.0.1:{port}", server), pictures) for _ in range(given.clients)]
            threads = [threading.Thread(target=visitor.visit, args=(each,)) for visitor in visitors]
            for thread in threads:
                thread.start()
            began = time.monotonic()
            seen: dict[int, float] = {}
            while any(thread.is_alive() for thread in threads):
                done = sum(len(visitor.answers) for visitor in visitors)
                if done not in seen and (now := memory(server.pid)) is not None:
                    seen[done] = now[0]
                    print(f"{done:4d} answers, {now[0]:.1f} MiB", flush=True)
                time.sleep(0.1)
            seconds = time.monotonic() - began
        finally:
            server.terminate()
    shutil.rmtree(cache)
    answered = sum(len(visitor.answers) for visitor in visitors)
    ordered = all(visitor.order == list(range(each)) for visitor in visitors)
    alike = all(visitor.answers == visitors[0].answers for visitor in visitors)
    waits = [wait for visitor in visitors for wait in visitor.seconds]
    grown = growth([own for done, own in seen.items() if done >= given.requests // 5])
    print(f"{answered} of {each * given.clients} requests answered in {seconds:.0f} s, {answered / seconds:.2f} per second")
    print(f"a request and the {WAITING - 1} before it: median {statistics.median(waits):.1f} s, longest {max(waits):.1f} s")
    print(f"in each client's order: {ordered}; the same answers for all clients: {alike}")
    print(f"the server's memory from {given.requests // 5} answers on: {grown:+.2%}, peak {max(seen.values()):.1f} MiB")
    if answered < each * given.clients or not ordered or not alike or grown > given.limit:
        sys.exit(1)


if __name__ == "__main__":
    main()
