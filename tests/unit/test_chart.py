"""The chart says what the code says: generated parts are fresh, and each setting reaches the operator."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

from gpubatch_operator.settings import Settings, load

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "gpubatch"


def test_generated_parts_of_the_chart_are_fresh() -> None:
    check = subprocess.run([sys.executable, ROOT / "hack" / "chart", "--check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr


def test_the_chart_sets_every_setting_to_the_operators_own_default() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())["settings"]
    # As `snakecase | upper` in templates/deployment.yaml does it.
    environ = {f"GPUBATCH_{re.sub('([A-Z])', '_' + chr(92) + '1', k).upper()}": str(v) for k, v in values.items()}
    assert environ.keys() == {f"GPUBATCH_{name.upper()}" for name in Settings.model_fields}
    assert load(environ) == Settings()


def test_every_value_is_described() -> None:
    obvious = {"nodeSelector", "tolerations", "affinity", "podAnnotations", "podLabels", "resources"}
    rows = re.findall(r"^\| `([^`]+)` \| `[^`]*` \| (.*) \|$", (CHART / "README.md").read_text(), re.MULTILINE)
    silent = {path for path, meaning in rows if not meaning} - obvious
    assert {path.rpartition(".")[2] for path in silent} <= {"create", "annotations", "repository", "pullPolicy"}, silent
