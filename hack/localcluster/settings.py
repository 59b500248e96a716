"""Where a cluster lives: its folders, addresses and names, all derived from its number.

Several clusters run side by side on one machine: GPUBATCH_CLUSTER_ID, 0 to 49, tells them apart.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from localcluster.console import SetupError

REPOSITORY = Path(__file__).resolve().parents[2]
SERVICE_CIDR = "10.96.0.0/16"
SERVICE_API = "10.96.0.1"
MAX_NODES = 8
MAX_CLUSTERS = 50


def cache_root() -> Path:
    """The folder of everything that is worth keeping between runs."""
    if explicit := os.environ.get("GPUBATCH_CACHE"):
        return Path(explicit).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "gpubatch"


@dataclass(frozen=True)
class Node:
    """One node: `index` counts from 1."""

    cluster: Cluster
    index: int

    @property
    def name(self) -> str:
        """The Kubernetes name: gpu-a, gpu-b, ..."""
        return f"gpu-{'abcdefgh'[self.index - 1]}"

    @property
    def ip(self) -> str:
        """The node's own address."""
        return f"10.{200 + self.cluster.id}.0.{10 + self.index}"

    @property
    def pod_cidr(self) -> str:
        """The addresses of its pods."""
        return f"10.{200 + self.cluster.id}.{128 + self.index}.0/24"

    @property
    def link(self) -> str:
        """The machine's end of the node's network cable."""
        return f"{self.cluster.bridge}-{self.name}"

    @property
    def group(self) -> str:
        """The cgroup of everything that runs on the node."""
        return f"{self.cluster.group}/{self.name}"

    @property
    def state(self) -> Path:
        """Files of this life of the node."""
        return self.cluster.state / "nodes" / self.name

    @property
    def containerd(self) -> Path:
        """containerd's folder: kept, so that images are imported once."""
        return self.cluster.cache / "nodes" / str(self.cluster.id) / self.name


@dataclass(frozen=True)
class Cluster:
    """One cluster on this machine."""

    id: int
    cache: Path

    @property
    def name(self) -> str:
        """What it is called in kubeconfigs, cgroups and by kind."""
        return f"gpubatch-{self.id}"

    @property
    def group(self) -> str:
        """The cgroup above all of its processes."""
        return self.name

    @property
    def bridge(self) -> str:
        """The network device that joins the nodes and the machine."""
        return f"gb{self.id}"

    @property
    def host_ip(self) -> str:
        """The machine's address on that network: the API server and the cluster's DNS answer there."""
        return f"10.{200 + self.id}.0.1"

    @property
    def pod_cidr(self) -> str:
        """The addresses of all pods."""
        return f"10.{200 + self.id}.128.0/17"

    @property
    def server(self) -> str:
        """The API server's URL, for the machine, the nodes and the pods alike."""
        return f"https://{self.host_ip}:6443"

    @property
    def etcd_port(self) -> int:
        """etcd's port on the loopback; its peer port is the next one."""
        return 23790 + 2 * self.id

    @property
    def state(self) -> Path:
        """Files of this life of the cluster: keys, logs, process numbers."""
        return self.cache / "state" / str(self.id)

    @property
    def control(self) -> Path:
        """Files of the control plane."""
        return self.state / "control"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.state / "kubeconfig"

    @property
    def lock(self) -> Path:
        """Held while the cluster is changed."""
        return self.cache / "state" / f"{self.id}.lock"

    def nodes(self, count: int) -> list[Node]:
        """The first `count` nodes."""
        return [Node(self, index) for index in range(1, count + 1)]

    def known_nodes(self) -> list[Node]:
        """The nodes that were started and not removed."""
        return [node for node in self.nodes(MAX_NODES) if node.state.is_dir()]

    def node(self, name: str) -> Node:
        """A known node by its name.

        Raises:
            SetupError: there is no such node.
        """
        for node in self.known_nodes():
            if node.name == name:
                return node
        known = ", ".join(node.name for node in self.known_nodes()) or "none"
        raise SetupError(f"no node {name!r} in cluster {self.id}; its nodes: {known}")


def current() -> Cluster:
    """The cluster that the environment names.

    Raises:
        SetupError: GPUBATCH_CLUSTER_ID isn't the number of a cluster.
    """
    text = os.environ.get("GPUBATCH_CLUSTER_ID", "0")
    if not (text.isascii() and text.isdigit() and int(text) < MAX_CLUSTERS):
        raise SetupError(f"GPUBATCH_CLUSTER_ID is {text!r}: expected a number, 0 to {MAX_CLUSTERS - 1}")
    return Cluster(int(text), cache_root())
