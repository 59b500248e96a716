"""Which cluster a test process uses: each worker of pytest-xdist has one of its own.

A run takes the numbers GPUBATCH_TEST_CLUSTER_ID (by default 8), 10 more, 20 more..., so that runs with neighbouring
numbers stay apart.
"""

from __future__ import annotations

import os

from localcluster.settings import MAX_CLUSTERS

WORKERS = 4  # at most
STEP = MAX_CLUSTERS // (WORKERS + 1)


def own() -> str:
    """The GPUBATCH_CLUSTER_ID of this process' cluster."""
    return _number(int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")))


def spare() -> str:
    """The GPUBATCH_CLUSTER_ID of one that no worker has."""
    return _number(WORKERS)


def _number(step: int) -> str:
    return str((int(os.environ.get("GPUBATCH_TEST_CLUSTER_ID", "8")) + STEP * step) % MAX_CLUSTERS)
