"""What krew would install: a manifest by its rules, and a launcher that installs itself once."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
MAKE = [
    sys.executable,
    str(ROOT / "hack" / "krew"),
    "--url",
    "https://example.com/v1/",
    "--home",
    "https://example.com",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("krew")
    subprocess.run([*MAKE, str(folder)], check=True)
    with tarfile.open(folder / "kubectl-gpubatch.tar.gz") as tar:
        tar.extractall(folder / "store", filter="data")
    return folder


def test_the_manifest_keeps_krews_rules_and_names_this_very_archive(made: Path) -> None:
    manifest = yaml.safe_load((made / "gpubatch.yaml").read_text())
    assert manifest["apiVersion"] == "krew.googlecontainertools.github.com/v1alpha2"
    assert manifest["kind"] == "Plugin"
    assert re.fullmatch(r"[a-z0-9-]+", manifest["metadata"]["name"])
    spec = manifest["spec"]
    assert re.fullmatch(r"v\d+\.\d+\.\d+", spec["version"])
    assert 0 < len(spec["shortDescription"]) <= 50
    assert not spec["shortDescription"].endswith(".")
    [platform] = spec["platforms"]
    assert platform["uri"] == "https://example.com/v1/kubectl-gpubatch.tar.gz"
    data = (made / "kubectl-gpubatch.tar.gz").read_bytes()
    assert platform["sha256"] == hashlib.sha256(data).hexdigest()
    assert os.access(made / "store" / platform["bin"], os.X_OK)
    assert (made / "store" / "LICENSE").is_file()


def test_the_same_commit_makes_the_same_bytes(made: Path, tmp_path: Path) -> None:
    subprocess.run([*MAKE, str(tmp_path)], check=True)
    for name in ("gpubatch.yaml", "kubectl-gpubatch.tar.gz"):
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes()


PYTHON = """#!/bin/sh
case "$*" in
  "-m venv --clear "*) mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
  "-m pip install "*)
    echo "$@" >> "$LOG"
    printf '#!/bin/sh\\necho "ran: $*"\\nexit 4\\n' > "$(dirname "$0")/kubectl-gpubatch"
    chmod +x "$(dirname "$0")/kubectl-gpubatch" ;;
esac
"""


def test_the_launcher_installs_at_its_first_call_and_hands_on_arguments_and_status(made: Path, tmp_path: Path) -> None:
    python, log, link = tmp_path / "python3", tmp_path / "log", tmp_path / "bin" / "kubectl-gpubatch"
    python.write_text(PYTHON)
    python.chmod(0o755)
    link.parent.mkdir()
    link.symlink_to(os.path.relpath(made / "store" / "kubectl-gpubatch", link.parent))
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "LOG": str(log)}
    for _ in range(2):
        told = subprocess.run([link, "wait", "a b"], env=env, capture_output=True, text=True, check=False)
        assert (told.returncode, told.stdout) == (4, "ran: wait a b\n"), told.stderr
    [installed] = log.read_text().splitlines()
    wheel = next((made / "store").glob("*.whl"))
    assert f"-c {made / 'store'}/constraints.txt {wheel}[cli]" in installed


def test_without_a_python_the_launcher_says_what_it_needs(made: Path, tmp_path: Path) -> None:
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "GPUBATCH_PYTHON": "/nowhere/python"}
    program = made / "store" / "kubectl-gpubatch"
    told = subprocess.run([program, "queue"], env=env, capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert "Python 3.11 or newer" in told.stderr
