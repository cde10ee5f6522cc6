"""What all tests share: two cores, one for each of two processes that run tests side by side."""

import os

import torch

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
# Ray's workers are usually nice to others: on a busy machine they would hardly get to run.
os.environ.setdefault("RAY_worker_niceness", "0")
