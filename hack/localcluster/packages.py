"""Debian packages that the local cluster and the image builder need, and what else the machine must offer."""

from __future__ import annotations

import os
import shutil

from localcluster import cgroups
from localcluster.console import SetupError, step
from localcluster.shell import run

CLUSTER = {"ip": "iproute2", "openssl": "openssl"}
NODES = {
    "containerd": "containerd",
    "runc": "runc",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
    "iptables": "iptables",
    "unshare": "util-linux",
}
IMAGES = {"buildah": "buildah", "mmdebstrap": "mmdebstrap"}


def require(programs: dict[str, str]) -> None:
    """Install the Debian packages (program -> package) that are missing.

    Raises:
        SetupError: not root, or not a Debian.
    """
    if os.geteuid() != 0:
        raise SetupError(
            "this needs root, for network devices, mounts and cgroups: be root, or start Docker to use kind"
        )
    if not (missing := sorted({package for program, package in programs.items() if not shutil.which(program)})):
        return
    if not shutil.which("apt-get"):
        raise SetupError(f"missing here: {', '.join(missing)}; install them, or start Docker to use kind")
    with step(f"Installing Debian packages: {' '.join(missing)}"):
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        run("apt-get", "update", "-qq", env=quiet)
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing, env=quiet)


def require_nodes() -> None:
    """What a node needs of the machine.

    Raises:
        SetupError: cgroup v2, which a node in namespaces would have to be delegated.
    """
    require(NODES)
    if not cgroups.is_v1():
        raise SetupError("nodes without Docker need cgroup v1, and this machine has v2: start Docker to use kind")
