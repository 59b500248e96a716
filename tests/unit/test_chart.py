"""The chart says what the code says: generated parts are fresh, and each setting reaches the operator."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from gpubatch_operator.settings import Settings, load

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "gpubatch"
FREE = {".global", ".affinity", ".resources", ".gateway.resources", ".admission.namespaceSelector"}
"""Values that Helm or Kubernetes define, and check."""


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
    rows = re.findall(r"^\| `([^`]+)` \| `[^`]*` \| (.*) \|$", (CHART / "README.md").read_text(), re.MULTILINE)
    assert rows, "no table of values: has its form changed?"
    assert {path for path, meaning in rows if not meaning} == set()


def test_the_schema_says_of_each_value_what_it_holds() -> None:
    def vague(schema: dict[str, Any], path: str) -> list[str]:
        if path in FREE:
            return []
        match schema.get("type"):
            case "object":
                inner = [v for k, s in schema.get("properties", {}).items() for v in vague(s, f"{path}.{k}")]
                return inner if "additionalProperties" in schema else [*inner, path]
            case "array":
                return [] if "items" in schema else [path]
            case kind:
                return [] if kind or "enum" in schema else [path]

    top = json.loads((CHART / "values.schema.json").read_text())
    assert vague(top, "") == []
