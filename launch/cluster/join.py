"""Joining a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import logging
import os
import signal

import ray

from stylevar.processes import sparing_children


def join_cluster(dashboard: bool = False) -> dict[str, float]:
    """Connect to the cluster that `ray job submit` or RAY_ADDRESS names, else to a local one; its resources.

    `dashboard`: a local one gets a dashboard, which Ray Train asks for the state of its actors.
    """
    if not ray.is_initialized():
        # The actor is the job itself: at Ray's usual niceness of 15 anything else on the machine would starve it.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # A closed terminal signals Ray's processes too, but the run still needs them to save its state.
        with sparing_children(signal.SIGHUP):
            ray.init(
                # Without a name Ray would join whatever was last started here, and wait minutes for one that has died.
                address=os.environ.get("RAY_ADDRESS", "local"),
                include_dashboard=dashboard if "RAY_ADDRESS" not in os.environ else None,
                logging_level=logging.WARNING,
                log_to_driver=True,
            )
    return ray.cluster_resources()
