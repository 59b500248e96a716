"""The same cluster by kind, wherever a Docker daemon answers."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from localcluster import tools
from localcluster.console import step
from localcluster.settings import REPOSITORY, Cluster
from localcluster.shell import run, succeeds

CONFIG = REPOSITORY / "hack" / "kind.yaml"


@functools.cache
def is_used() -> bool:
    """Whether Docker is here to be used."""
    return succeeds("docker", "info", timeout=15)


def up(cluster: Cluster) -> None:
    """Create the cluster of hack/kind.yaml, unless it exists."""
    cluster.state.mkdir(parents=True, exist_ok=True)
    if cluster.name not in _kind("get", "clusters").split():
        with step(f"Creating {cluster.name} with kind"):
            _kind("create", "cluster", "--name", cluster.name, "--config", str(CONFIG), "--wait", "180s")
    _kind("export", "kubeconfig", "--name", cluster.name, "--kubeconfig", str(cluster.kubeconfig))


def down(cluster: Cluster) -> None:
    """Delete the cluster."""
    _kind("delete", "cluster", "--name", cluster.name, "--kubeconfig", str(cluster.kubeconfig))


def inside(container: str, argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` on a node, which is a container."""
    return ["docker", "exec", "-i", container, *argv]


def load(cluster: Cluster, references: Sequence[str]) -> None:
    """Bring images of the Docker daemon onto all nodes."""
    _kind("load", "docker-image", "--name", cluster.name, *references)


def _kind(*argv: str) -> str:
    return run(tools.path("kind"), *argv)
