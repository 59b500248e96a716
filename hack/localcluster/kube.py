"""The cluster seen through its API, by kubectl: the same for kind and for local processes."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from localcluster import tools
from localcluster.console import SetupError
from localcluster.settings import Cluster
from localcluster.shell import replace_file, run

GPU = "nvidia.com/gpu"
GPU_LABEL = "nvidia.com/gpu.present"


def write_kubeconfig(path: Path, cluster: Cluster, token: str) -> None:
    """Write a kubeconfig (JSON is YAML) for a user of the local cluster."""
    certificate = str(cluster.control / "ca.crt")
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": cluster.name, "cluster": {"server": cluster.server, "certificate-authority": certificate}}
        ],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": cluster.name, "context": {"cluster": cluster.name, "user": "user"}}],
        "current-context": cluster.name,
    }
    replace_file(path, json.dumps(config, indent=1), mode=0o600)


def kubectl(cluster: Cluster, *argv: str, stdin: str | None = None) -> str:
    """Run kubectl as the administrator."""
    return run(tools.path("kubectl"), "--kubeconfig", cluster.kubeconfig, "--request-timeout=10s", *argv, stdin=stdin)


def is_serving(cluster: Cluster) -> bool:
    """Whether the API server is ready."""
    try:
        return kubectl(cluster, "get", "--raw", "/readyz") == "ok"
    except SetupError:
        return False


def nodes(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """All Node objects by name."""
    found = json.loads(kubectl(cluster, "get", "nodes", "-o", "json"))["items"]
    return {node["metadata"]["name"]: node for node in found}


def is_ready(node: dict[str, Any] | None, since: float = 0) -> bool:
    """Whether a Node object says that its kubelet is well, and said so after `since` (seconds of the epoch)."""
    for condition in node["status"].get("conditions", []) if node else []:
        if condition["type"] == "Ready" and condition["status"] == "True":
            heard = condition.get("lastHeartbeatTime")  # a node that is only pretended may have none
            return not since or (heard is not None and datetime.fromisoformat(heard).timestamp() >= since)
    return False


def has_gpu(node: dict[str, Any]) -> bool:
    """Whether a Node object offers a GPU to the scheduler and says so in its label."""
    labelled = node["metadata"].get("labels", {}).get(GPU_LABEL) == "true"
    return labelled and all(node["status"].get(part, {}).get(GPU) == "1" for part in ("capacity", "allocatable"))


def advertise_gpus(cluster: Cluster, names: list[str]) -> None:
    """Give each node one pretended GPU.

    A kubelet that finds no device plugin sets such resources to zero once, when it registers: so look again.

    Raises:
        SetupError: a kubelet keeps removing it.
    """
    status = json.dumps({"status": {part: {GPU: "1"} for part in ("capacity", "allocatable")}})
    for _ in range(10):
        found = nodes(cluster)
        if not (bare := [name for name in names if not has_gpu(found[name])]):
            return
        for name in bare:
            kubectl(cluster, "label", "node", name, f"{GPU_LABEL}=true", "--overwrite")
            kubectl(cluster, "patch", "node", name, "--subresource=status", "--type=merge", "-p", status)
        time.sleep(1)
    raise SetupError(f"nodes {', '.join(bare)} do not keep {GPU}: see the kubelet's log with `hack/cluster logs`")
