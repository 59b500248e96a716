"""Jobs of equal length, more than nodes: how fast they go through, and what that costs."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

from gpubatch_operator.kube.client import Client
from localcluster.console import SetupError, say, step
from queuebench import audit, lab, workload
from queuebench.audit import Write
from queuebench.workload import Process, Usage

JSON = dict[str, Any]
NAMESPACE, HELD = "bench", "held"
STALLED = 60.0  # seconds in which no pod ended


async def measure(nodes: int, jobs: int, seconds: float, with_ours: bool, with_bare: bool) -> JSON:
    """The figures of the operator, those of the bare loop beside them, and ratios of the two."""
    load = os.getloadavg()[0]
    ceiling = await bare(nodes, jobs, seconds) if with_bare else None
    found: JSON = {"nodes": nodes, "jobs": jobs, "seconds": seconds, "load_before": round(load, 1)}
    if with_ours:
        found |= await ours(nodes, jobs, seconds)
    if ceiling:
        found["bare"] = ceiling
    if with_ours and ceiling:
        found["ratio_to_bare"] = {
            key: round(found[key] / ceiling[key], 2)
            for key in ("jobs_per_second", "occupancy", "gap_p50_s", "gap_p99_s", "cpu_ms_per_job")
            if found[key] is not None and ceiling[key]
        }
    return found


async def bare(nodes: int, jobs: int, seconds: float) -> JSON:
    """The ceiling of this machine at this moment."""
    with lab.lab() as cluster:
        client = await Client.connect(str(cluster.kubeconfig("bench")))
        try:
            await lab.add_nodes(client, nodes)
            await lab.add_namespace(client, NAMESPACE)
            with workload.bare_loop(cluster, nodes, jobs, seconds) as process:
                await process.said("ready")
                log, before = audit.Log(cluster.audit), process.usage()
                writes = log.read()
                with step("The bare loop runs"):
                    process.signal(signal.SIGUSR1)
                    await _until_ended(log, writes, process, jobs, seconds)
                    await process.said("done")
                writes += log.read()
                usage = process.usage()
            begin = min(w.at for w in writes if w.resource == "barejobs/status")
            found = figures(writes, "bare", await _where(client), nodes, jobs, seconds, begin)
            return found | _used(before, usage, jobs)
        finally:
            await client.close()


async def ours(nodes: int, jobs: int, seconds: float) -> JSON:
    """The operator. One job holds each node until all others wait; then they end at once."""
    with lab.lab() as cluster:
        client = await Client.connect(str(cluster.kubeconfig("bench")))
        try:
            await lab.add_nodes(client, nodes)
            for name in (NAMESPACE, HELD):
                await lab.add_namespace(client, name)
            with workload.operator(cluster) as process:
                await process.said("synced")
                log, before, writes = audit.Log(cluster.audit), process.usage(), list[Write]()
                with step(f"{nodes} nodes are held, {jobs} jobs wait"):
                    await hold(client, log, writes, process, nodes)
                    names = [f"job-{i:05d}" for i in range(jobs)]
                    await workload.create(client, NAMESPACE, [workload.job(n, seconds) for n in names])
                    await workload.until_all(client, NAMESPACE, "Queued", process)
                with step("The operator runs"):
                    await workload.release(client, HELD)
                    await _until_ended(log, writes, process, jobs, seconds)
                    await workload.until_all(client, NAMESPACE, "Succeeded", process)
                    await asyncio.sleep(2)  # the last finalizers and Events
                writes += log.read()
                usage = process.usage()
            begin = min(at for name, at in audit.pods(writes).ended.items() if name.startswith(HELD))
            found = figures(writes, "operator", await _where(client), nodes, jobs, seconds, begin)
            return found | _used(before, usage, jobs + nodes)
        finally:
            await client.close()


async def hold(client: Client, log: audit.Log, writes: list[Write], process: Process, nodes: int) -> None:
    """A job on each node that runs until its pod is released."""
    jobs = [workload.job(f"{HELD}-{i:04d}", 0.001, hold=True) for i in range(nodes)]
    await workload.create(client, HELD, jobs)
    while len(audit.pods(writes).started) < nodes:
        await asyncio.sleep(0.5)
        process.check()
        writes += log.read()


def figures(
    writes: list[Write], author: str, where: dict[str, str], nodes: int, jobs: int, seconds: float, begin: float
) -> JSON:
    """What the audit log says of a run that began at `begin`; `where`: the node of each pod."""
    pods = audit.pods(writes)
    ours = [w for w in writes if w.namespace == NAMESPACE]
    by_author = [w for w in ours if w.user == author and not (w.verb == "create" and w.resource == "barejobs")]
    end = max(w.at for w in by_author if w.resource.endswith("jobs/status"))
    waiting_until = max(at for name, at in pods.created.items() if name.startswith("job-"))
    created, bound = (audit.gaps(pods, where, moments) for moments in (pods.created, pods.bound))
    return {
        "jobs_per_second": round(jobs / (end - begin), 1),
        "occupancy": round(audit.occupancy(pods, nodes, begin, waiting_until), 3),
        "occupancy_to_the_end": round(jobs * seconds / (nodes * (end - begin)), 3),
        "gap_p50_s": audit.quantile(created, 0.5),
        "gap_p99_s": audit.quantile(created, 0.99),
        "gap_to_bound_p50_s": audit.quantile(bound, 0.5),
        "gap_to_bound_p99_s": audit.quantile(bound, 0.99),
        "operator_writes_per_job": round(len(by_author) / jobs, 2),
        "writes_per_job": round(len(ours) / jobs, 2),
        "writes_by_kind_per_job": {k: round(n / jobs, 2) for k, n in audit.by_kind(ours).items() if n >= jobs / 100},
    }


def _used(before: Usage, after: Usage, jobs: int) -> JSON:
    return {
        "operator_cpu_s": round(after.cpu, 2),
        "cpu_ms_per_job": round(1000 * (after.cpu - before.cpu) / jobs, 2),
        "operator_peak_mib": round(after.peak, 1),
    }


async def _where(client: Client) -> dict[str, str]:
    pods, _ = await client.list("/api/v1/pods")
    return {p["metadata"]["name"]: p["spec"]["nodeName"] for p in pods}


async def _until_ended(log: audit.Log, writes: list[Write], process: Process, jobs: int, seconds: float) -> None:
    """Wait until so many jobs' pods have ended.

    Raises:
        SetupError: No pod has ended for a long time.
    """
    ended, since, told = -1, time.monotonic(), time.monotonic()
    while True:
        writes += log.read()
        count = sum(name.startswith("job-") for name in audit.pods(writes).ended)
        if count >= jobs:
            return
        now = time.monotonic()
        if count > ended:
            ended, since = count, now
        elif now > since + STALLED + seconds:
            raise SetupError(
                f"{count} of {jobs} pods have ended and no other for {now - since:.0f} s: {process.words()}"
            )
        if now > told + 10:
            told = now
            say(f"    {count} of {jobs} jobs are done")
        process.check()
        await asyncio.sleep(0.5)
