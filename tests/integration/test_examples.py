"""The examples are valid to the last field, as they are and as the demo changes them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "folder",
    [
        "examples",
        "hack/demo_lib/overlay",
        "examples/templates",
        "examples/presigned",
        "examples/scoring",
        "examples/live",
    ],
)
def test_examples_are_valid(kubeconfig: Path, folder: str) -> None:
    kubectl = subprocess.check_output([ROOT / "hack" / "cluster", "tool", "kubectl"], text=True).strip()
    manifest = subprocess.check_output([kubectl, "kustomize", ROOT / folder], text=True)
    written = ROOT / "examples" if "overlay" in folder else ROOT / folder
    manifest = manifest.replace("namespace: gpubatch-demo", "namespace: default")
    command = [kubectl, "--kubeconfig", kubeconfig, "apply", "--dry-run=server", "--validate=strict", "-f", "-"]
    done = subprocess.run(command, input=manifest, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = {file.name: file.read_text() for file in written.glob("*.yaml")}
    made = files.pop("kustomization.yaml").count("Generator:")
    assert done.stdout.count("created") == made + sum(text.count("\nkind:") for text in files.values())


def test_the_receiver_of_webhooks_is_valid_too(kubeconfig: Path) -> None:
    test_examples_are_valid(kubeconfig, "examples/webhooks")
