"""What GitOps tools do: render, apply server-side, compare, ask for health, prune."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

JSON = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "gitops"
HEALTH = EXAMPLES / "argocd" / "health.lua"
CLUSTER = ROOT / "hack" / "cluster"
MANAGER = "argocd-controller"


@functools.cache
def tool(name: str) -> str:
    """The path of a pinned program."""
    return subprocess.check_output([CLUSTER, "tool", name], text=True).strip()


def build_health(folder: Path) -> Path:
    """The program that asks kstatus and Argo CD's interpreter (tests/gitops); Go caches what it is made of."""
    target = folder / "health"
    env = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false", "CGO_ENABLED": "0"}
    subprocess.run([tool("go"), "build", "-o", target, "."], cwd=ROOT / "tests" / "gitops", env=env, check=True)
    return target


@dataclass(frozen=True)
class Repository:
    """A folder that is committed to, and the tool that applies it to a namespace.

    Args:
        kubeconfig: The cluster's.
        folder: What was committed: a kustomization, or a chart (has a Chart.yaml).
        namespace: Where it goes.
    """

    kubeconfig: Path
    folder: Path
    namespace: str

    def render(self) -> str:
        """As Argo CD and Flux do it."""
        if (self.folder / "Chart.yaml").exists():
            command = [tool("helm"), "template", "jobs", self.folder, "--namespace", self.namespace]
        else:
            command = [tool("kubectl"), "kustomize", self.folder]
        return subprocess.check_output([*command], text=True)

    def apply(self) -> None:
        """Server-side, and without force: a field that somebody else has taken is an error."""
        self._kubectl("apply", "--server-side", f"--field-manager={MANAGER}", "-f", "-")

    def diff(self) -> str:
        """What an apply would change; empty if nothing.

        kubectl reads each object twice. What the operator writes to status in between isn't there the next time; what
        drifts is.
        """
        for _ in range(5):
            done = self._run("diff", "--server-side", f"--field-manager={MANAGER}", "-f", "-")
            assert done.returncode in (0, 1), done.stderr
            if done.returncode == 0:
                break
        return done.stdout

    def prune(self) -> str:
        """Apply, and delete what was committed once and isn't any more; what was done."""
        return self._kubectl(
            *("apply", "--server-side", f"--field-manager={MANAGER}", "--prune", "--applyset=jobs", "-f", "-")
        )

    def _kubectl(self, *arguments: str) -> str:
        done = self._run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [tool("kubectl"), "--kubeconfig", self.kubeconfig, "-n", self.namespace, *arguments]
        env = {**os.environ, "KUBECTL_APPLYSET": "true"}
        return subprocess.run(command, input=self.render(), capture_output=True, text=True, env=env)


def health(program: Path, *objects: JSON) -> list[tuple[str, str]]:
    """(kstatus, Argo CD's health) of each object."""
    text = "\n".join(map(json.dumps, objects))
    out = subprocess.check_output([program, HEALTH], input=text, text=True)
    return [(line["kstatus"], line["argo"]["status"]) for line in map(json.loads, out.splitlines())]


def write_kustomization(folder: Path, jobs: list[JSON]) -> None:
    """Commit these jobs as a base, and an overlay that has some say in them; `folder` is the overlay."""
    base = folder.parent / "base"
    base.mkdir(exist_ok=True)
    folder.mkdir(exist_ok=True)
    (base / "jobs.yaml").write_text(yaml.safe_dump_all(jobs))
    (base / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["jobs.yaml"]}))
    labels = [{"pairs": {"app.kubernetes.io/part-of": "search"}}]
    overlay = {"resources": ["../base"], "labels": labels, "commonAnnotations": {"example.com/owner": "search"}}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))


def write_chart(folder: Path, jobs: list[JSON]) -> None:
    """Commit these jobs as the templates of a chart."""
    (folder / "templates").mkdir(parents=True, exist_ok=True)
    (folder / "Chart.yaml").write_text(yaml.safe_dump({"apiVersion": "v2", "name": "jobs", "version": "1.0.0"}))
    for job in jobs:
        labels = {"app.kubernetes.io/managed-by": "{{ .Release.Service }}", "helm.sh/chart": "jobs-1.0.0"}
        job = {**job, "metadata": {**job["metadata"], "namespace": "{{ .Release.Namespace }}", "labels": labels}}
        (folder / "templates" / f"{job['metadata']['name']}.yaml").write_text(yaml.safe_dump(job))
