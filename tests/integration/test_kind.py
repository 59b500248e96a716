"""kind's configuration, which can't be run without Docker, is checked by kind's own types (tests/cluster)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_kind_accepts_its_configuration() -> None:
    go = subprocess.check_output([ROOT / "hack" / "cluster", "tool", "go"], text=True).strip()
    env = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false"}
    done = subprocess.run([go, "test", "."], cwd=ROOT / "tests" / "cluster", env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
