"""The programs that the demo calls: this repository's own, kubectl and helm."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo_lib.console import Console, DemoError

JSON = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]


def run(*argv: str | Path, stdin: str | None = None, env: Mapping[str, str] | None = None, quiet: bool = True) -> str:
    """A program's standard output; with `quiet` its standard error is kept for the error.

    Raises:
        DemoError: It failed.
    """
    words = [str(word) for word in argv]
    done = subprocess.run(
        words,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if quiet else None,
        text=True,
        env={**os.environ, **(env or {})},
    )
    if done.returncode:
        said = f": {done.stderr.strip() or done.stdout.strip()}" if quiet else ""
        raise DemoError(f"`{shlex.join(words)[:300]}` exited {done.returncode}{said}")
    return done.stdout


def wait_for(what: str, seconds: float, check: Callable[[], bool]) -> None:
    """Poll until it is true.

    Raises:
        DemoError: It isn't within `seconds`.
    """
    end = time.monotonic() + seconds
    while not check():
        if time.monotonic() > end:
            raise DemoError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.5)


@dataclass(frozen=True)
class Kube:
    """A cluster, by its kubeconfig: all that the demo needs of it, whoever made it."""

    kubeconfig: Path
    kubectl_path: Path
    helm_path: Path

    def kubectl(self, *argv: str, stdin: str | None = None) -> str:
        """Run kubectl."""
        return run(self.kubectl_path, "--kubeconfig", self.kubeconfig, *argv, stdin=stdin)

    def apply(self, manifest: str, *argv: str) -> None:
        """Apply a manifest as a user does."""
        self.kubectl("apply", *argv, "-f", "-", stdin=manifest)

    def get(self, *argv: str) -> JSON:
        """`kubectl get -o json`."""
        found: JSON = json.loads(self.kubectl("get", *argv, "-o", "json"))
        return found

    def helm(self, *argv: str) -> str:
        """Run helm."""
        return run(self.helm_path, "--kubeconfig", self.kubeconfig, *argv)

    def has(self, *argv: str) -> bool:
        """Whether an object exists."""
        return bool(self.kubectl("get", *argv, "--ignore-not-found", "-o", "name").strip())

    @contextmanager
    def forward(self, namespace: str, target: str, port: int) -> Iterator[int]:
        """A local port that leads to a port of a pod or Service while the context lasts.

        Raises:
            DemoError: kubectl says no.
        """
        words = ("--kubeconfig", self.kubeconfig, "-n", namespace, "port-forward", target, f":{port}")
        command = [str(self.kubectl_path), *map(str, words)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            try:
                assert process.stdout
                line = process.stdout.readline()
                if not (match := re.match(r"Forwarding from 127\.0\.0\.1:(\d+)", line)):
                    raise DemoError(f"kubectl port-forward {target} {port}: {line}")
                yield int(match[1])
            finally:
                process.terminate()


def cluster_is_up() -> bool:
    """Whether the cluster of hack/cluster runs already."""
    return subprocess.run([ROOT / "hack" / "cluster", "status"], stdout=subprocess.DEVNULL).returncode == 0


def cluster_up() -> Kube:
    """Bring up the cluster of hack/cluster (kind, or local processes)."""
    cluster = ROOT / "hack" / "cluster"
    run(cluster, "up", quiet=False)
    config = Path(run(cluster, "kubeconfig").strip())
    return Kube(config, *(Path(run(cluster, "tool", name, quiet=False).strip()) for name in ("kubectl", "helm")))


def cluster_down() -> None:
    """Remove it."""
    run(ROOT / "hack" / "cluster", "down", quiet=False)


def load_images(*more: str) -> dict[str, str]:
    """Build what changed and bring it onto the nodes, what the demo needs and `more`; name -> reference."""
    output = run(ROOT / "hack" / "images", "load", "operator", "runner", "s3", "engine-cpu", *more, quiet=False)
    images: dict[str, str] = json.loads(output)
    return images


def pin_images(manifest: str, images: Mapping[str, str]) -> str:
    """The manifest with the names of our own images replaced by the references that were built."""
    return re.sub(
        r"(image: )gpubatch\.dev/([a-z0-9-]+)( |$)", lambda m: m[1] + images[m[2]] + m[3], manifest, flags=re.MULTILINE
    )


def rollout(kube: Kube, console: Console, namespace: str, name: str) -> None:
    """Wait until a Deployment is ready; if it never is, say why.

    Raises:
        DemoError: With what its pods say.
    """
    with console.waiting(f"waiting for {name} to be ready"):
        try:
            kube.kubectl("-n", namespace, "rollout", "status", f"deployment/{name}", "--timeout=240s")
        except DemoError as error:
            pods = kube.kubectl("-n", namespace, "get", "pods", "-o", "wide")
            events = kube.kubectl("-n", namespace, "get", "events", "--sort-by=.lastTimestamp").splitlines()[-12:]
            raise DemoError("\n".join([str(error), pods, *events])) from None
