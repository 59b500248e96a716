"""The examples are valid to the last field, as they are and as the demo changes them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("folder", ["examples", "hack/demo_lib/overlay", "examples/templates", "examples/presigned"])
def test_examples_are_valid(kubeconfig: Path, folder: str) -> None:
    kubectl = subprocess.check_output([ROOT / "hack" / "cluster", "tool", "kubectl"], text=True).strip()
    manifest = subprocess.check_output([kubectl, "kustomize", ROOT / folder], text=True)
    written = ROOT / "examples" if "overlay" in folder else ROOT / folder
    manifest = manifest.replace("namespace: gpubatch-demo", "namespace: default")
    command = [kubectl, "--kubeconfig", kubeconfig, "apply", "--dry-run=server", "--validate=strict", "-f", "-"]
    done = subprocess.run(command, input=manifest, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("created") == len(list(written.glob("*.yaml"))) - 1  # kustomization.yaml
