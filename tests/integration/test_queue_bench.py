"""The benchmark of the queue runs, on a cluster of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from support import cluster

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_of_the_queue_runs_and_says_what_it_found():
    command = [sys.executable, ROOT / "hack/bench/queue", "--nodes", "3", "--jobs", "9", "--seconds", "0.5", "--json"]
    out = subprocess.check_output(command, env={**os.environ, "GPUBATCH_CLUSTER_ID": cluster.spare()}, text=True)
    found = json.loads(out.splitlines()[-1])
    keys = {"jobs_per_second", "occupancy", "gap_p50_s", "gap_p99_s", "operator_cpu_s", "operator_peak_mib"}
    assert keys <= found.keys()
    assert keys <= found["bare"].keys()
    kinds = found["writes_by_kind_per_job"]
    assert (kinds["operator: create pods"], kinds["operator: patch pods"]) == (1.0, 1.0)
    assert (
        3 <= kinds["operator: patch gpubatchjobs/status"] < found["operator_writes_per_job"] < found["writes_per_job"]
    )
    assert found["bare"]["operator_writes_per_job"] == 4.0
