"""A cluster to measure on: a real control plane with an audit log, and nodes that KWOK plays."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpubatch_operator.kube.client import ApiError, Client
from localcluster import control, daemons, kube, tools
from localcluster.console import SetupError
from localcluster.settings import Cluster, cache_root
from localcluster.shell import lock

JSON = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
DEFAULT_CLUSTER = "7"
# Each writes under a name of its own, so that the audit log tells whose write it was.
USERS = ("operator", "bare", "kwok", "bench")
AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [{"level": "Metadata", "verbs": ["create", "update", "patch", "delete", "deletecollection"]}],
}
PRIORITY_CLASS = {
    "apiVersion": "scheduling.k8s.io/v1",
    "kind": "PriorityClass",
    "metadata": {"name": "gpubatch-runner"},
    "value": 0,
    "preemptionPolicy": "Never",
}
PARALLEL = 50  # requests at a time


@dataclass(frozen=True)
class Lab:
    """A running cluster; `folder` holds its audit log and the users' kubeconfigs."""

    cluster: Cluster
    folder: Path

    @property
    def audit(self) -> Path:
        """The audit log: one JSON object a line."""
        return self.folder / "audit.log"

    def kubeconfig(self, user: str) -> Path:
        """The kubeconfig of one of `USERS`."""
        return self.folder / f"{user}.kubeconfig"


@contextmanager
def lab() -> Iterator[Lab]:
    """An empty cluster that is gone afterwards.

    Raises:
        SetupError: The cluster of that number is somebody's own, or doesn't start.
    """
    cluster = Cluster(int(os.environ.get("GPUBATCH_CLUSTER_ID", DEFAULT_CLUSTER)), cache_root())
    folder = cluster.state / "bench"
    with lock(cluster.lock):
        if cluster.state.exists() and not folder.exists():
            text = f"cluster {cluster.id} is in use: `hack/cluster down`, or another GPUBATCH_CLUSTER_ID"
            raise SetupError(text)
        control.stop(cluster)
        folder.mkdir(parents=True)
        (folder / "audit.json").write_text(json.dumps(AUDIT))
        audit = (f"--audit-policy-file={folder / 'audit.json'}", f"--audit-log-path={folder / 'audit.log'}")
        flags = {"kube-apiserver": audit, "kube-controller-manager": ("--node-monitor-grace-period=300s",)}
        try:
            control.start(cluster, flags, USERS)
            for name in USERS:
                kube.write_kubeconfig(folder / f"{name}.kubeconfig", cluster, control.user(cluster, name))
            _start_kwok(cluster, folder)
            for manifest in ((ROOT / "crds" / "gpubatchjobs.yaml").read_text(), json.dumps(PRIORITY_CLASS)):
                kube.kubectl(cluster, "apply", "-f", "-", stdin=manifest)
            kube.kubectl(cluster, "wait", "--for=condition=Established", "crd/gpubatchjobs.gpubatch.dev")
            yield Lab(cluster, folder)
        finally:
            control.stop(cluster)


def _start_kwok(cluster: Cluster, folder: Path) -> None:
    config = Path(__file__).parent / "kwok.yaml"
    argv = [tools.path("kwok"), f"--kubeconfig={folder / 'kwok.kubeconfig'}", f"--config={config}"]
    daemons.start(control.group(cluster), cluster.control, "kwok", [*argv, "--manage-all-nodes"])


async def add_nodes(client: Client, count: int, prefix: str = "gpu") -> None:
    """Nodes of one GPU each, `gpu-0000` and so on; wait until pods may be bound to them."""
    room = {"nvidia.com/gpu": "1", "cpu": "32", "memory": "256Gi", "pods": "110"}

    async def add(name: str) -> None:
        labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "played by KWOK"}
        body = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": labels},
            "status": {"capacity": room, "allocatable": room, "conditions": [ready]},
        }
        await client.create("/api/v1/nodes", body)

    await each([add(f"{prefix}-{i:04d}") for i in range(count)])
    while True:  # the controller manager takes the taint off that new nodes are born with
        nodes, _ = await client.list("/api/v1/nodes")
        if not any(n["spec"].get("taints") for n in nodes):
            return
        await asyncio.sleep(0.5)


async def add_namespace(client: Client, name: str) -> None:
    """A namespace in which pods can be created."""
    await client.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    while True:
        try:
            await client.get(f"/api/v1/namespaces/{name}/serviceaccounts/default")
            return
        except ApiError:
            await asyncio.sleep(0.2)


async def each(work: list[Any]) -> None:
    """Run the coroutines, `PARALLEL` at a time."""
    gate = asyncio.Semaphore(PARALLEL)

    async def one(item: Any) -> None:
        async with gate:
            await item

    await asyncio.gather(*map(one, work))
