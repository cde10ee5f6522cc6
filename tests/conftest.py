"""What all tests share: two cores, one for each of two processes that run tests side by side."""

import os
import signal

import pytest
import torch

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
# Ray's workers are usually nice to others: on a busy machine they would hardly get to run.
os.environ.setdefault("RAY_worker_niceness", "0")
# nohup and some CI runners have programs ignore signals, which ours respect and pass on: tests send them.
for number in (signal.SIGHUP, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells ignore for what they run in the background


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-interface", action="store_true", help="write tests/golden/interface.json anew")
