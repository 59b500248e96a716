"""A node: containerd, kubelet and kube-proxy in namespaces and a cgroup of their own."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from localcluster import archive, cgroups, control, daemons, kube, network, tools
from localcluster.console import SetupError, say
from localcluster.settings import Node
from localcluster.shell import run, wait_for

INIT = Path(__file__).parent / "node_init.sh"
ROOM = 20 << 30  # bytes; the images of all nodes together take about as much
PAUSE_IMAGE = "gpubatch.dev/pause:1"
DAEMONS = ("init", "containerd", "kubelet", "kube-proxy")
RESTARTING = 'while :; do "$@"; echo "$0 exited $?, and is started again"; sleep 1; done'
EVICTION_SIGNALS = ("memory.available", "nodefs.available", "imagefs.available", "nodefs.inodesFree")
CONTAINERD_CONFIG = f"""\
version = 2
oom_score = 0
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true  # root may lack the capability to protect pods from the kernel's out-of-memory killer
  disable_apparmor = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
"""


def is_well(node: Node, since: float = 0) -> bool:
    """Whether its processes run and its kubelet has reported Ready after `since` (seconds of the epoch)."""
    if not all(daemons.alive(node.group, node.state, name) for name in DAEMONS):
        return False
    return kube.is_ready(kube.nodes(node.cluster).get(node.name), since)


def start(node: Node) -> None:
    """Start a node; nothing of an earlier life but its images may be left. Its kubelet is Ready a little later."""
    for folder in ("kubelet", "leases", "cni/net.d", "log"):
        (node.state / folder).mkdir(parents=True)
    node.containerd.mkdir(parents=True, exist_ok=True)
    cgroups.create(node.group)
    _write_configuration(node)
    _start_init(node)
    network.connect(node, _init(node))
    _start_inside(node, "containerd", "containerd", "--config", node.state / "containerd.toml")
    wait_for("containerd", lambda: _containerd_answers(node), 60, node.state / "containerd.log")
    if PAUSE_IMAGE not in images(node):
        pause = archive.single_file_image(tools.path("pause"), PAUSE_IMAGE, node.state / "pause.tar")
        ctr(node, "images", "import", str(pause))
    _start_inside(
        node,
        "kubelet",
        tools.path("kubelet"),
        f"--config={node.state / 'kubelet.json'}",
        f"--kubeconfig={node.state / 'kubelet.kubeconfig'}",
        f"--hostname-override={node.name}",
        f"--node-ip={node.ip}",
        "--root-dir=/var/lib/kubelet",
    )
    _start_inside(node, "kube-proxy", tools.path("kube-proxy"), f"--config={node.state / 'kube-proxy.json'}")


def wait_until_ready(nodes: Sequence[Node], since: float, seconds: float) -> None:
    """Wait until all of these nodes have reported Ready after `since`: an older report is of an earlier life."""
    for node in nodes:
        wait_for(f"node {node.name}", functools.partial(is_well, node, since), seconds, node.state / "kubelet.log")


def make_room(node: Node) -> None:
    """Drop the images of a stopped node when the disk is nearly full: they come again; a kubelet needs some room."""
    if node.containerd.exists() and shutil.disk_usage(node.containerd).free < ROOM:
        say(f"    less than {ROOM >> 30} GiB are free: the images of {node.name} are removed, and will be loaded again")
        shutil.rmtree(node.containerd)


def stop(node: Node) -> None:
    """Cut a node's power: everything on it dies at once; its images and its Node object stay."""
    cgroups.remove(node.group)
    network.disconnect(node)
    shutil.rmtree(node.state, ignore_errors=True)


def inside(node: Node, argv: Sequence[str | Path]) -> list[str]:
    """The command line that runs `argv` on the node.

    Raises:
        SetupError: the node is down.
    """
    if not daemons.alive(node.group, node.state, "init"):
        raise SetupError(f"node {node.name} is down: `hack/cluster up` brings it back")
    return cgroups.joining(node.group, ["nsenter", "-t", str(_init(node)), "-a", "--", *argv])


def ctr(node: Node, *argv: str) -> str:
    """Run containerd's own client on the node, in Kubernetes' namespace."""
    return run(*inside(node, ["ctr", "--namespace", "k8s.io", *argv]))


def images(node: Node) -> set[str]:
    """The image names that a node holds."""
    return set(ctr(node, "images", "ls", "-q").split())


def _init(node: Node) -> int:
    """The node's first process, by the machine's numbers: the only child of `unshare`."""
    outer = daemons.pid(node.state, "init")
    return int(Path(f"/proc/{outer}/task/{outer}/children").read_text())


def _start_init(node: Node) -> None:
    namespaces = ("unshare", "-mnpuiC", "--fork", "--kill-child=KILL", "--propagation", "private")
    daemons.start(
        node.group, node.state, "init", [*namespaces, "/bin/bash", INIT, node.name, node.state, node.containerd]
    )
    wait_for(f"node {node.name}", (node.state / "ready").exists, 20, node.state / "init.log")


def _start_inside(node: Node, name: str, *argv: str | Path) -> None:
    """Start a daemon that is started again when it ends, as a node's init system does."""
    command = ["nsenter", "-t", str(_init(node)), "-a", "--", *argv]
    daemons.start(node.group, node.state, name, ["/bin/sh", "-c", RESTARTING, name, *command])


def _containerd_answers(node: Node) -> bool:
    return subprocess.run(inside(node, ["ctr", "version"]), capture_output=True).returncode == 0


def _write_configuration(node: Node) -> None:
    cluster = node.cluster
    network_config = {
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "ptp",
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": node.pod_cidr}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }
    token = control.user(cluster, f"system:node:{node.name}")
    kube.write_kubeconfig(node.state / "kubelet.kubeconfig", cluster, token)
    kubelet = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(cluster.control / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "clusterDNS": [cluster.host_ip],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        # A test that kills a container ten times must not wait for five minutes each time.
        "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
        "enforceNodeAllocatable": [],
        # The disk and the memory are the machine's: a test must not be evicted for what others use of them.
        "evictionHard": dict.fromkeys(EVICTION_SIGNALS, "0%"),
        "failCgroupV1": False,
        "failSwapOn": False,
        "imageGCHighThresholdPercent": 100,
        "makeIPTablesUtilChains": False,
        "maxOpenFiles": 20000,
        "nodeStatusUpdateFrequency": "5s",
        "oomScoreAdj": 0,
        "resolvConf": "",
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
    }
    proxy = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": str(cluster.control / "kube-proxy.kubeconfig")},
        "clusterCIDR": cluster.pod_cidr,
        "hostnameOverride": node.name,
        # Zero leaves the machine's connection tracking as it is.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }
    (node.state / "cni" / "net.d" / "10-pods.conflist").write_text(json.dumps(network_config, indent=1))
    (node.state / "containerd.toml").write_text(CONTAINERD_CONFIG)
    (node.state / "kubelet.json").write_text(json.dumps(kubelet, indent=1))
    (node.state / "kube-proxy.json").write_text(json.dumps(proxy, indent=1))
