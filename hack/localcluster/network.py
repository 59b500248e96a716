"""The network that joins the machine, the nodes and their pods: one bridge, a cable to each node, routes, no NAT."""

from __future__ import annotations

import json
from pathlib import Path

from localcluster.settings import Cluster, Node
from localcluster.shell import run, succeeds


def create_bridge(cluster: Cluster) -> None:
    """Make the bridge and the machine's address on it."""
    run("ip", "link", "add", cluster.bridge, "type", "bridge")
    run("ip", "address", "add", f"{cluster.host_ip}/24", "dev", cluster.bridge)
    run("ip", "link", "set", cluster.bridge, "up")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1\n")  # pods of different nodes talk through the machine


def connect(node: Node, pid: int) -> None:
    """Join a node, by a process in its network namespace, to the bridge."""
    inside = ("nsenter", "-t", str(pid), "-n", "ip")
    host = node.cluster.host_ip
    run("ip", "link", "add", node.link, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
    run("ip", "link", "set", node.link, "master", node.cluster.bridge, "up")
    run(*inside, "address", "add", f"{node.ip}/24", "dev", "eth0")
    run(*inside, "link", "set", "eth0", "up")
    run(*inside, "route", "add", "default", "via", host)
    run("ip", "route", "replace", node.pod_cidr, "via", node.ip, "src", host)


def remove(cluster: Cluster) -> None:
    """Remove the bridge and all cables, with their addresses and routes."""
    for name in _links():
        if name == cluster.bridge or name.startswith(f"{cluster.bridge}-"):
            _delete(name)


def disconnect(node: Node) -> None:
    """Remove a node's cable."""
    _delete(node.link)


def _delete(name: str) -> None:
    """Remove a device, which a dying namespace may remove at the same moment."""
    while name in _links():
        succeeds("ip", "link", "delete", name)


def _links() -> list[str]:
    return [link["ifname"] for link in json.loads(run("ip", "-json", "link", "show"))]
