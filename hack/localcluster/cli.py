"""The command line of `hack/cluster`."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import time
from collections.abc import Sequence

from localcluster import control, kind, kube, loading, node, packages, tools
from localcluster.console import SetupError, say, step
from localcluster.settings import MAX_NODES, Cluster, current
from localcluster.shell import lock

DEFAULT_NODES = 2


def up(cluster: Cluster, count: int) -> None:
    """Bring the cluster up, mend it, or find that there is nothing to do."""
    start = time.monotonic()
    with lock(cluster.lock):
        if kind.is_used():
            kind.up(cluster)
            names = [name for name in sorted(kube.nodes(cluster)) if not name.endswith("control-plane")]
        else:
            _up_local(cluster, count)
            names = [member.name for member in cluster.nodes(count)]
        if names:
            kube.advertise_gpus(cluster, names)
            tools.path("helm")
    say(f"==> {cluster.name} is up: {', '.join(names) or 'no nodes'} ({time.monotonic() - start:.1f} s)")
    print(f"export KUBECONFIG={shlex.quote(str(cluster.kubeconfig))}")
    print(f"export PATH={shlex.quote(str(tools.folder()))}:$PATH")


def _up_local(cluster: Cluster, count: int) -> None:
    packages.require(packages.CLUSTER)
    if not control.is_well(cluster):
        if cluster.state.exists():
            say("==> Removing what an earlier, broken run left")
        control.stop(cluster)
        control.start(cluster)
    if not count:
        return
    packages.require_nodes()
    for name in tools.NODE:
        tools.path(name)
    control.start_dns(cluster)
    try:
        _start_ill_nodes(cluster, count, 60)
    except SetupError as failure:  # whatever it was: a power cycle gives them a clean start
        say(f"==> {failure}")
        _start_ill_nodes(cluster, count, 120)


def _start_ill_nodes(cluster: Cluster, count: int, seconds: float) -> None:
    ill = [member for member in cluster.nodes(count) if not node.is_well(member)]
    if ill:
        with step(f"Starting {', '.join(member.name for member in ill)}"):
            begin = time.time()
            for member in ill:
                node.stop(member)
                node.make_room(member)
                node.start(member)
            node.wait_until_ready(ill, begin, seconds)


def down(cluster: Cluster) -> None:
    """Remove everything but the caches."""
    with lock(cluster.lock):
        if kind.is_used():
            kind.down(cluster)
        else:
            packages.require(packages.CLUSTER)
            control.stop(cluster)
    say(f"==> {cluster.name} is down")


def status(cluster: Cluster) -> int:
    """Print what is well and what isn't; 0 if all is."""
    if not (cluster.kubeconfig.exists() and kube.is_serving(cluster)):
        print(f"{cluster.name}: down")
        return 1
    well = kind.is_used() or control.is_well(cluster)
    print(f"{cluster.name}: {'up' if well else 'the API answers, but a part of the control plane is dead'}")
    print(f"kubeconfig: {cluster.kubeconfig}")
    for name, found in sorted(kube.nodes(cluster).items()):
        ready, gpus = kube.is_ready(found), found["status"]["allocatable"].get(kube.GPU, "0")
        if not kind.is_used():
            ready = ready and any(node.is_well(member) for member in cluster.known_nodes() if member.name == name)
        print(f"{name}: {'Ready' if ready else 'NotReady'}, {kube.GPU} {gpus}")
        well = well and ready
    return 0 if well else 1


def execute(cluster: Cluster, name: str, argv: Sequence[str]) -> int:
    """Run a command on a node, with this terminal."""
    command = kind.inside(name, argv) if kind.is_used() else node.inside(cluster.node(name), argv)
    return subprocess.run(command).returncode


def logs(cluster: Cluster) -> None:
    """Print where the logs are, and the end of each."""
    for path in sorted(cluster.state.rglob("*.log")):
        if "log" in path.relative_to(cluster.state).parts[:-1]:
            continue  # the containers' own: `kubectl logs` shows them
        print(f"==> {path}")
        print("\n".join(path.read_text(errors="replace").splitlines()[-10:]))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="hack/cluster",
        description="A Kubernetes cluster on this machine: kind where Docker runs, ordinary processes elsewhere. "
        "GPUBATCH_CLUSTER_ID (0 to 49) tells clusters side by side apart.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    starting = commands.add_parser("up", help="bring it up, or mend it; prints the exports for your shell")
    counts, wanted = range(MAX_NODES + 1), "how many (default: 2); 0: control plane only"
    starting.add_argument("--nodes", type=int, default=DEFAULT_NODES, choices=counts, metavar="N", help=wanted)
    commands.add_parser("down", help="remove everything but the caches")
    commands.add_parser("status", help="what is well; exit status 1 if something isn't")
    commands.add_parser("kubeconfig", help="print the kubeconfig's path")
    commands.add_parser("logs", help="the end of each component's log")
    executing = commands.add_parser("exec", help="run a command on a node")
    executing.add_argument("node")
    executing.add_argument("argv", nargs=argparse.REMAINDER)
    off = commands.add_parser("poweroff", help="kill a node as a power cut would; `up` brings it back")
    off.add_argument("node")
    bringing = commands.add_parser("load", help="bring images of the builder onto all nodes")
    bringing.add_argument("references", nargs="+", metavar="REF")
    tool = commands.add_parser("tool", help="print the path of a pinned program (helm, kubectl, versitygw, kwok...)")
    tool.add_argument("name")
    return parser.parse_args(argv)


def dispatch(arguments: argparse.Namespace, cluster: Cluster) -> int:
    """Run one command; returns the exit status."""
    match arguments.command:
        case "up":
            up(cluster, arguments.nodes)
        case "down":
            down(cluster)
        case "status":
            return status(cluster)
        case "kubeconfig":
            print(cluster.kubeconfig)
        case "logs":
            logs(cluster)
        case "exec":
            return execute(cluster, arguments.node, arguments.argv)
        case "poweroff":
            with lock(cluster.lock):
                node.stop(cluster.node(arguments.node))
        case "load":
            with lock(cluster.lock):
                loading.load(cluster, arguments.references)
        case "tool":
            print(tools.path(arguments.name))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The whole command; one sentence and status 1 when the user has to mend something."""
    try:
        return dispatch(parse(argv), current())
    except SetupError as failure:
        say(f"hack/cluster: {failure}")
        return 1
    except KeyboardInterrupt:
        say("hack/cluster: interrupted; `hack/cluster up` goes on from here, `hack/cluster down` cleans up")
        return 130
