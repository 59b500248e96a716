"""A long queue: what a new job at its head costs, how long positions take to be exact, a restart, memory."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

from gpubatch_operator.kube.client import Client
from localcluster.console import say, step
from queuebench import audit, lab, workload
from queuebench.audit import Write
from queuebench.throughput import HELD, NAMESPACE, hold
from queuebench.workload import Process

JSON = dict[str, Any]
TOP = 20
AFTER_HEAD = 5.0  # seconds in which the writes after a new head are counted


async def measure(nodes: int, count: int) -> JSON:
    """So many jobs wait for nodes that are all busy."""
    with lab.lab() as cluster:
        client = await Client.connect(str(cluster.kubeconfig("bench")))
        try:
            await lab.add_nodes(client, nodes)
            for name in (NAMESPACE, HELD):
                await lab.add_namespace(client, name)
            found: JSON = {"nodes": nodes, "waiting": count}
            log, writes = audit.Log(cluster.audit), list[Write]()
            with workload.operator(cluster) as process:
                await process.said("synced")
                with step(f"{nodes} nodes are held, {count} jobs wait"):
                    await hold(client, log, writes, process, nodes)
                    jobs = [workload.job(f"job-{i:05d}", 1) for i in range(count)]
                    await workload.create(client, NAMESPACE, jobs)
                    await workload.until_all(client, NAMESPACE, "Queued", process)
                found["converged_s"] = await _until_exact(client, process)
                found |= await _new_head(client, log)
                found["head_converged_s"] = await _until_exact(client, process)
                found["operator_peak_mib"] = round(process.usage().peak, 1)
                process.signal(signal.SIGTERM)
                await process.ended()
            await lab.add_nodes(client, 1, "free")
            log.read()
            with workload.operator(cluster, "again") as process, step("The operator starts anew"):
                found["restart_to_first_admission_s"] = await _first_admission(log, process)
                await asyncio.sleep(15)
                usage = process.usage()
                found |= {"restart_peak_mib": round(usage.peak, 1), "restart_cpu_s": round(usage.cpu, 2)}
            return found
        finally:
            await client.close()


async def _until_exact(client: Client, process: Process) -> float:
    """Seconds until each waiting job has its exact position."""
    begin = time.monotonic()
    while True:
        jobs, _ = await client.list(workload.jobs_path(NAMESPACE), resourceVersion="0")
        wrong = sum(j["status"].get("queuePosition") != i for i, j in enumerate(_in_order(jobs), 1))
        if not wrong:
            return round(time.monotonic() - begin, 1)
        say(f"    {wrong} of {len(jobs)} positions aren't exact yet")
        process.check()
        await asyncio.sleep(5)


def _in_order(jobs: list[JSON]) -> list[JSON]:
    def rank(job: JSON) -> tuple[int, str, int]:
        return -job["spec"].get("priority", 0), job["status"]["queuedAt"], int(job["status"]["queueTicket"])

    return sorted(jobs, key=rank)


async def _new_head(client: Client, log: audit.Log) -> JSON:
    """A job comes that is the first in order: what is written, and whether the first positions are exact in time."""
    jobs, _ = await client.list(workload.jobs_path(NAMESPACE), resourceVersion="0")
    expected = ["head", *(j["metadata"]["name"] for j in _in_order(jobs)[: TOP - 1])]
    log.read()
    begin = time.monotonic()
    await workload.create(client, NAMESPACE, [workload.job("head", 1, priority=1000)])

    while True:
        found = await asyncio.gather(*(client.get(f"{workload.jobs_path(NAMESPACE)}/{name}") for name in expected))
        if all(j.get("status", {}).get("queuePosition") == i for i, j in enumerate(found, 1)):
            break
        await asyncio.sleep(0.1)
    exact = time.monotonic() - begin
    await asyncio.sleep(max(0.0, begin + AFTER_HEAD - time.monotonic()))
    count = sum(w.user == "operator" and w.namespace == NAMESPACE for w in log.read())
    return {f"top_{TOP}_exact_s": round(exact, 2), "writes_after_new_head": count}


async def _first_admission(log: audit.Log, process: Process) -> float:
    while True:
        for write in log.read():
            if write.user == "operator" and write.resource == "pods" and write.verb == "create":
                return round(write.at - process.started, 2)
        process.check()
        await asyncio.sleep(0.2)
