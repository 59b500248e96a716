"""Images from the builder onto the nodes, all nodes at once, and old ones off them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from localcluster import builder, kind, node
from localcluster.console import SetupError, step
from localcluster.settings import Cluster, Node

CHUNK = 1 << 20


def load(cluster: Cluster, references: Sequence[str]) -> None:
    """Bring images onto every node that lacks them.

    Raises:
        SetupError: the builder lacks one, the cluster has no nodes or one is down.
    """
    if kind.is_used():
        kind.load(cluster, references)
        return
    members = cluster.known_nodes()
    if not members:
        raise SetupError(f"cluster {cluster.id} has no nodes: run `hack/cluster up` first")
    held = {member.name: node.images(member) for member in members}
    for reference in references:
        if lacking := [member for member in members if reference not in held[member.name]]:
            with step(f"Loading {reference} onto {', '.join(member.name for member in lacking)}"):
                _stream(reference, lacking)


def prune(cluster: Cluster, wanted: Sequence[str]) -> None:
    """Remove from the nodes the other tags of these images, and what only they needed."""
    repositories = {reference.rpartition(":")[0] for reference in wanted}
    for member in [] if kind.is_used() else cluster.known_nodes():
        for reference in node.images(member):
            if reference.rpartition(":")[0] in repositories and reference not in wanted:
                node.ctr(member, "images", "rm", "--sync", reference)


def _stream(reference: str, members: Sequence[Node]) -> None:
    """Read the image from the builder once and feed it to all nodes."""
    imports = [
        subprocess.Popen(
            node.inside(member, ["ctr", "--namespace", "k8s.io", "images", "import", "-"]),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for member in members
    ]
    with subprocess.Popen(builder.save_command(reference), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as source:
        assert source.stdout
        assert source.stderr
        try:
            while chunk := source.stdout.read(CHUNK):
                for process in imports:
                    assert process.stdin
                    process.stdin.write(chunk)
        except BrokenPipeError:
            source.kill()
        failures = [source.stderr.read().decode(errors="replace")] if source.wait() else []
    for process in imports:
        _, error = process.communicate()
        if process.returncode:
            failures.append(error.decode(errors="replace"))
    if failures:
        raise SetupError(f"{reference} could not be loaded: {' '.join(''.join(failures).split())}")
